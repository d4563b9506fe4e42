"""`python -m edge_encoder [--config FILE] [--setting VALUE ...]`."""

from __future__ import annotations

import sys

from edge_encoder.settings import EdgeSettings
from sfic.errors import SficError
from sfic.threads import limit_blas_threads


def main() -> int:
    """Run the edge until it is told to stop; returns the exit code."""
    limit_blas_threads()
    # Loads numpy, which must not come before the line above.
    from edge_encoder.service import run

    try:
        run(EdgeSettings.load(sys.argv[1:]))
    except SficError as error:
        print(f"edge_encoder: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
