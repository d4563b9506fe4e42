"""Where the files that ship with the package lie: weights and the demo's photograph.

What belongs here: finding them in a checkout and in an installed wheel. Reading them belongs to
the modules that use them.
"""

from __future__ import annotations

import os
from pathlib import Path

from sfic.errors import BundleError

_PACKAGE = Path(__file__).resolve().parent


def models_dir() -> Path:
    """Directory of the weights: `SFIC_MODELS`, else a checkout's `models/`, else the wheel's.

    Raises BundleError when it is not there.
    """
    override = os.environ.get("SFIC_MODELS")
    candidates = (
        [Path(override)] if override else [_PACKAGE.parent / "models", _PACKAGE / "_models"]
    )
    for directory in candidates:
        if directory.is_dir():
            return directory
    cause = "SFIC_MODELS names no directory" if override else "the model weights are not installed"
    raise BundleError(f"{cause}: {candidates[-1]}")


def demo_photograph() -> Path:
    """The photograph `sfic demo` uses when none is given (see NOTICE for its origin)."""
    return _PACKAGE / "data" / "astronaut.png"
