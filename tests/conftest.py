"""Settings for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Shared machines stall, so no deadline; the same examples on every run, so that a failure in one
# place is a failure everywhere. `--hypothesis-profile=wide` looks further, at random.
settings.register_profile(
    "adaseek",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "wide", parent=settings.get_profile("adaseek"), derandomize=False, max_examples=2000
)
settings.load_profile("adaseek")
