"""Networks as OpenVINO compiled them, kept for the next start.

Belongs here: the files, their folder and its limit. What is in them is `sfic.openvino_session`'s.

The folder is `SFIC_COMPILED_DIR`, by default `sfic/compiled` in the user's cache (`XDG_CACHE_HOME`,
`~/.cache`); an empty `SFIC_COMPILED_DIR` keeps nothing. What is in it runs, so it is read only
where nobody else can write. Files are written beside their place and moved there, and carry their
SHA-256: what was cut off or changed is compiled again. Where nothing can be written nothing is
kept, and all goes on as without.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

__all__ = ["FOLDER_VARIABLE", "MOST_BYTES", "can_store", "drop", "folder", "load", "store"]

FOLDER_VARIABLE: Final = "SFIC_COMPILED_DIR"
MOST_BYTES: Final = 1 << 30  # of all files; those that were not used for longest go first
_SUFFIX: Final = ".compiled"
_MAGIC: Final = b"sfic compiled 1\n"
_HEADER_BYTES: Final = len(_MAGIC) + 32

Arrays = Mapping[str, npt.NDArray[Any]]
log = logging.getLogger(__name__)


def folder() -> Path | None:
    """Where files are kept; None: nowhere."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (cache if cache.is_absolute() else Path.home() / ".cache") / "sfic" / "compiled"
    except RuntimeError:  # a user without a home
        return None


def load(key: str) -> Arrays | None:
    """The arrays kept under a key, hex digits; None when there are none, or not whole ones."""
    root = folder()
    if root is None:
        return None
    path = root / f"{key}{_SUFFIX}"
    try:
        if not _is_ours(os.stat(root)):
            log.info("%s can be written by others: what is in it is not used", root)
            return None
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            told = os.fstat(file.fileno())
            if not (stat.S_ISREG(told.st_mode) and _is_ours(told) and told.st_size <= MOST_BYTES):
                return None
            with contextlib.suppress(OSError):
                os.utime(path)
            if file.read(_HEADER_BYTES) == _header(file):
                file.seek(_HEADER_BYTES)
                with np.load(file, allow_pickle=False) as arrays:
                    return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.info("%s is not used: %s", path, error)
    drop(key)
    return None


def can_store() -> bool:
    """Whether `store` has a place to write to; makes the folder."""
    root = folder()
    if root is None:
        return False
    with contextlib.suppress(OSError):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return root.is_dir() and os.access(root, os.W_OK)


def store(key: str, arrays: Arrays) -> None:
    """Keep arrays under a key, in place of what is there."""
    root = folder()
    size = sum(array.nbytes for array in arrays.values())
    if root is None or not can_store() or size > MOST_BYTES:
        return
    part: Path | None = None
    try:
        _make_room(root, MOST_BYTES - size)
        with tempfile.NamedTemporaryFile(dir=root, suffix=".part", delete=False) as file:
            part = Path(file.name)
            file.write(bytes(_HEADER_BYTES))
            np.savez(file, **dict[str, Any](arrays))
            file.flush()
            with part.open("rb") as written:
                written.seek(_HEADER_BYTES)
                header = _header(written)
            file.seek(0)
            file.write(header)
        os.replace(part, root / f"{key}{_SUFFIX}")
        part = None
    except OSError as error:
        log.info("a compiled network is not kept: %s", error)
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def drop(key: str) -> None:
    """Delete what is kept under a key."""
    root = folder()
    if root is not None:
        with contextlib.suppress(OSError):
            (root / f"{key}{_SUFFIX}").unlink()


def _header(file: BinaryIO) -> bytes:
    """What stands before the rest of a file, which is read to its end."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return _MAGIC + digest.digest()


def _is_ours(told: os.stat_result) -> bool:
    """Whether nobody else, but root, can write there."""
    return told.st_uid in (os.geteuid(), 0) and not told.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _make_room(root: Path, most: int) -> None:
    """Delete files of ours, the longest unused first, until they have `most` bytes together."""
    files = []
    for path in root.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            told = path.stat()
            files.append((told.st_mtime, told.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files, key=lambda file: file[0]):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
