"""`python -m analytics_service [--config FILE] [--setting VALUE ...]`."""

from __future__ import annotations

import sys

from analytics_service.settings import AnalyticsSettings
from sfic.errors import SficError
from sfic.threads import limit_blas_threads


def main() -> int:
    """Run analytics until it is told to stop; returns the exit code."""
    limit_blas_threads()
    # Loads numpy, which must not come before the line above.
    from analytics_service.service import run

    try:
        run(AnalyticsSettings.load(sys.argv[1:]))
    except SficError as error:
        print(f"analytics_service: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
