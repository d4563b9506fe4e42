"""Networks as OpenVINO compiled them, kept for the next start.

Belongs here: the files, their folder and its limit. What is in them is `sfic.openvino_session`'s.

The folder is `SFIC_COMPILED_DIR`, by default `sfic/compiled` in the user's cache (`XDG_CACHE_HOME`,
`~/.cache`); an empty `SFIC_COMPILED_DIR` keeps nothing. Files are written beside their place and
moved there, and carry their SHA-256: what was cut off or changed is compiled again. Where nothing
can be written nothing is kept, and all goes on as without.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["FOLDER_VARIABLE", "MOST_BYTES", "folder", "keep", "kept"]

FOLDER_VARIABLE: Final = "SFIC_COMPILED_DIR"
MOST_BYTES: Final = 1 << 30  # of all files; those that were not used for longest go first
_SUFFIX: Final = ".compiled"
_DIGEST_BYTES: Final = 32

Arrays = Mapping[str, npt.NDArray[Any]]


def folder() -> Path | None:
    """Where files are kept; None: nowhere."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "sfic" / "compiled"
    except RuntimeError:  # a user without a home
        return None


def kept(key: str) -> Arrays | None:
    """The arrays kept under a key, hex digits; None when there are none, or not whole ones."""
    root = folder()
    if root is None:
        return None
    path = root / f"{key}{_SUFFIX}"
    try:
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, content = data[:_DIGEST_BYTES], memoryview(data)[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        forget(key)
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def keep(key: str, arrays: Arrays) -> None:
    """Keep arrays under a key, in place of what is there."""
    root = folder()
    if root is None:
        return
    buffer = io.BytesIO()
    np.savez(buffer, **dict[str, Any](arrays))
    content = buffer.getvalue()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_room(root, MOST_BYTES - len(content))
        with tempfile.NamedTemporaryFile(dir=root, delete=False) as part:
            try:
                part.write(hashlib.sha256(content).digest())
                part.write(content)
                part.close()
                os.replace(part.name, root / f"{key}{_SUFFIX}")
            except OSError:
                os.unlink(part.name)
    except OSError:
        return


def forget(key: str) -> None:
    """Drop what is kept under a key."""
    root = folder()
    if root is not None:
        with contextlib.suppress(OSError):
            (root / f"{key}{_SUFFIX}").unlink()


def _make_room(root: Path, most: int) -> None:
    """Drop files, the longest unused first, until they have `most` bytes together."""
    files = [(path.stat(), path) for path in root.iterdir() if path.is_file()]
    total = sum(stat.st_size for stat, _ in files)
    for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size
