"""Files that only their owner may read: keys, and what vouches for the audit log."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync_folder", "write_secret"]


def write_secret(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, whole or not at all; synced to disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk, so that a file made or renamed there stays so."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
