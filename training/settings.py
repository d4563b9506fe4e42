"""Reading of training configurations: TOML files in `training/configs/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_config(path: Path) -> dict[str, Any]:
    """The file as a dictionary."""
    with path.open("rb") as file:
        return tomllib.load(file)
