"""`python -m cloud_decoder [--config FILE] [--setting VALUE ...]`."""

from __future__ import annotations

import sys

from cloud_decoder.settings import DecoderSettings
from sfic.errors import SficError
from sfic.threads import limit_blas_threads


def main() -> int:
    """Run the decoder until it is told to stop; returns the exit code."""
    limit_blas_threads()
    # Loads numpy, which must not come before the line above.
    from cloud_decoder.service import run

    try:
        run(DecoderSettings.load(sys.argv[1:]))
    except SficError as error:
        print(f"cloud_decoder: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
