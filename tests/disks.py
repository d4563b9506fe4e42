"""Disks that misbehave, for tests: full, and read-only."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

__all__ = ["FullDisk", "limited_files", "read_only", "small_disk"]


class FullDisk(Protocol):
    """A folder whose disk can be filled up."""

    folder: Path

    def fill(self) -> None:
        """Leave no room for another page."""

    def free(self) -> None:
        """Make room again."""


class _Limited:
    """Files of this process cannot grow past where the largest one is: needs no rights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        # Pages in the middle of a file can still be written; a log that starts over has no room.
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, self._before[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


class _Small:
    """A file system of its own, with a file that takes what is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (65_536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextmanager
def limited_files(folder: Path) -> Iterator[FullDisk]:
    """A disk that is full when the process may not make files longer."""
    disk = _Limited(folder)
    try:
        yield disk
    finally:
        disk.free()


@contextmanager
def small_disk(folder: Path) -> Iterator[FullDisk]:
    """A disk of 4 MB; skips where file systems may not be mounted."""
    with _mounted(folder, "size=4M"):
        yield _Small(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder on a disk that cannot be written. As root by a mount, else by its rights."""
    if os.geteuid() == 0:
        bind = subprocess.run(["mount", "--bind", folder, folder], capture_output=True)
        again = ["mount", "-o", "remount,bind,ro", folder]
        if bind.returncode or subprocess.run(again, capture_output=True).returncode:
            pytest.skip("root may not mount here")
        try:
            yield
        finally:
            subprocess.run(["umount", folder], check=True)
        return
    paths = [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path in reversed(paths):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True
    )
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here: not root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
