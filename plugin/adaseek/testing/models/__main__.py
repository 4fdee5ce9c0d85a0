"""`python -m adaseek.testing.models NAME...` prepares models and prints their directories."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adaseek.errors import AdaseekError
from adaseek.testing.models import CATALOGUE, ensure_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one directory a line, in the order of the names; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m adaseek.testing.models", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(CATALOGUE))
    parser.add_argument("--cache-dir", type=Path, help="where prepared models are kept")
    options = parser.parse_args(arguments)
    for name in options.names:
        try:
            directory = ensure_model(name, cache_dir=options.cache_dir)
        except AdaseekError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        sys.stdout.write(f"{directory}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
