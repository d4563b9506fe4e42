"""Backups of a service's files: made while it runs, checked, aged out, and put back.

A backup is a folder with the time in its name: databases as SQLite's online backup copies them,
other files as they are, and `manifest.json` with the hash of each. What belongs into a backup, and
what has to be done to data that comes back, is the service's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sfic.errors import InvalidInput, StorageError

__all__ = ["Backup", "age_out", "make_backup", "open_backup", "put_back"]

_MANIFEST = "manifest.json"
_TIME = "%Y%m%dT%H%M%SZ"
_BUSY_SECONDS = 30.0


@dataclass(frozen=True)
class Backup:
    """A backup that is whole. `hashes`: SHA-256 of each file by its name."""

    folder: Path
    service: str
    made: datetime
    hashes: dict[str, str]


def make_backup(
    service: str,
    databases: Sequence[Path],
    files: Sequence[Path],
    into: Path,
    now: datetime | None = None,
) -> Backup:
    """Copy databases, in the order given, and files into a new folder of `into`.

    The service may go on: what it commits meanwhile is in the copy of a database or not, whole.
    Raises `StorageError`; what was begun is removed then.
    """
    made = (now or datetime.now(timezone.utc)).replace(microsecond=0)
    folder = into / f"{service}-{made.strftime(_TIME)}"
    try:
        into.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
    try:
        for path in databases:
            _copy_database(path, folder / path.name)
        for path in files:
            shutil.copyfile(path, folder / path.name)
        for path in folder.iterdir():
            path.chmod(0o600)
        hashes = {path.name: _hash(path) for path in sorted(folder.iterdir())}
        stated = {"service": service, "made": made.isoformat(), "files": hashes}
        # Last: a folder without it is no backup.
        (folder / _MANIFEST).write_text(json.dumps(stated, indent=1) + "\n")
    except (OSError, sqlite3.Error) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StorageError(f"no backup made: {error}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Backup(folder, service, made, hashes)


def open_backup(folder: Path, service: str) -> Backup:
    """Read and check a backup. Raises `InvalidInput` for one that is not whole or another's."""
    try:
        stated = json.loads((folder / _MANIFEST).read_text())
        backup = Backup(
            folder,
            str(stated["service"]),
            datetime.fromisoformat(stated["made"]),
            dict(stated["files"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{folder} is not a backup: {error}") from error
    if backup.service != service:
        raise InvalidInput(f"{folder} is a backup of {backup.service}, not of {service}")
    for name, expected in backup.hashes.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or _hash(path) != expected:
            raise InvalidInput(f"{folder}: {name} is missing or was changed")
    return backup


def put_back(backup: Backup, target: Path, kept: Sequence[str] = ()) -> None:
    """Copy a backup's files into a folder, but not those named in `kept` that are there already.

    Raises `InvalidInput` when one of the others is there: nothing is overwritten.
    """
    wanted = [name for name in backup.hashes if name not in kept or not (target / name).exists()]
    for name in wanted:
        for path in (target / name, target / f"{name}-wal", target / f"{name}-shm"):
            if path.exists():
                raise InvalidInput(f"{path} is there: stop the service and move it away first")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            shutil.copyfile(backup.folder / name, target / name)
            (target / name).chmod(0o600)
    except OSError as error:
        raise StorageError(f"cannot write into {target}: {error.strerror or error}") from error


def age_out(into: Path, service: str, days: float, now: datetime | None = None) -> list[Path]:
    """Delete backups of a service that are older than so many days; returns their folders."""
    oldest = (now or datetime.now(timezone.utc)) - timedelta(days=days)
    gone = []
    for folder in sorted(into.glob(f"{service}-*")):
        with contextlib.suppress(ValueError):
            time = datetime.strptime(folder.name.removeprefix(f"{service}-"), _TIME)
            if time.replace(tzinfo=timezone.utc) < oldest:
                shutil.rmtree(folder)
                gone.append(folder)
    return gone


def _copy_database(path: Path, target: Path) -> None:
    if not path.is_file():
        raise StorageError(f"there is no database {path}")
    with (
        contextlib.closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        # One file, with no log beside it.
        copy.execute("PRAGMA journal_mode = DELETE")
        found = copy.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise StorageError(f"{path} is damaged: {found}")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
