"""Stages of a long command: each runs once for its inputs, and is resumed when it was cut off.

Belongs here: when a stage has to run again. What stages do belongs to the commands.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

__all__ = ["Stages", "files_digest"]

STAMP: Final = "stage.json"
VERSION: Final = 2  # raise it when the same inputs give another result


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents of files, hex."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class Stages:
    """Stages with a folder each under `root`.

    A stage's key is the hash of its inputs, in which the keys of the stages before it may stand. A
    folder with another key is emptied first; one with the same key that was not finished is handed
    to the stage as it is, so that it may go on.
    """

    def __init__(self, root: Path, count: int, log: logging.Logger) -> None:
        self.root, self.count, self.log = root, count, log
        self.keys: dict[str, str] = {}

    def run(self, name: str, inputs: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """Folder with the results of a stage; `make(folder)` is called when they are not there."""
        folder = self.root / name
        text = json.dumps({"version": VERSION, "inputs": inputs}, sort_keys=True)
        key = self.keys[name] = hashlib.sha256(text.encode()).hexdigest()
        place = f"[{len(self.keys)}/{self.count}] {name}"
        known = self._stamp(folder)
        if known.get("key") == key and self._whole(folder, known.get("files")):
            self.log.info("%s: done before", place)
            return folder
        if known.get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder, {"key": key})
        self.log.info("%s: %s", place, "goes on" if known.get("key") == key else "starts")
        begin = time.monotonic()
        make(folder)
        files = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != STAMP}
        self._write(folder, {"key": key, "files": files})
        self.log.info("%s: done in %.0f s", place, time.monotonic() - begin)
        return folder

    @staticmethod
    def _stamp(folder: Path) -> dict[str, Any]:
        try:
            stamp = json.loads((folder / STAMP).read_text())
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    @staticmethod
    def _whole(folder: Path, files: dict[str, int] | None) -> bool:
        return files is not None and all(
            (folder / name).is_file() and (folder / name).stat().st_size == size
            for name, size in files.items()
        )

    @staticmethod
    def _write(folder: Path, stamp: dict[str, Any]) -> None:
        part = folder / f"{STAMP}.part"
        part.write_text(json.dumps(stamp))
        part.replace(folder / STAMP)
