"""`python -m console [--config FILE] [--setting VALUE ...]`."""

from __future__ import annotations

import sys

from console.service import run
from console.settings import ConsoleSettings
from sfic.errors import SficError


def main() -> int:
    """Run the console until it is told to stop; returns the exit code."""
    try:
        run(ConsoleSettings.load(sys.argv[1:]))
    except SficError as error:
        print(f"console: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
