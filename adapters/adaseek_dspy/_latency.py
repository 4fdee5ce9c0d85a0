from adaseek.workflow import Call


def critical_path(calls: tuple[Call, ...]) -> float | None:
    return sum(c.duration_s for c in calls if c.parent is None)
