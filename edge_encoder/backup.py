"""What of an edge goes into a backup, and what a backup needs before the edge may start on it.

The keys stay out unless they are asked for: without them a backup shows no face, and nothing that
was forgotten can come back. The master key never goes along.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from google.protobuf.json_format import ParseDict, ParseError
from prometheus_client import CollectorRegistry

from edge_encoder.metrics import EdgeMetrics
from edge_encoder.settings import EdgeSettings
from edge_encoder.store import FaceStore
from sfic.audit import AuditLog, read_log
from sfic.errors import AuditBroken, ConfigError
from sfic.service.backup import Backup, make_backup, put_back
from sfic.v1 import control_pb2

__all__ = ["Restored", "back_up_edge", "restore_edge"]

_KEYS = "keys.sqlite"
_AUDIT = ("audit.jsonl", "audit.jsonl.head")


@dataclass(frozen=True)
class Restored:
    """What came back: faces, those of which the keys are gone, and orders to forget given since."""

    faces: int
    forgotten_again: int
    without_keys: int


def back_up_edge(settings: EdgeSettings, into: Path, *, keys: bool) -> Backup:
    """Back up the edge's log of faces with grants and orders, its audit log and, if asked, keys.

    Faces come before keys: one that is dropped in between has no key in the copy.
    """
    folder = settings.data_dir.expanduser()
    databases = [folder / "edge.sqlite", *([folder / _KEYS] if keys else [])]
    files = [folder / name for name in _AUDIT if (folder / name).exists()]
    return make_backup("edge", databases, files, into)


def restore_edge(backup: Backup, settings: EdgeSettings) -> Restored:
    """Put a backup into the folder of an edge that does not run.

    Keys and audit log that lie there are newer and stay. Faces without keys go, the log gets a new
    name, so that its readers start over, and orders to forget that the audit log has of the time
    since the backup are carried out again. Raises `ConfigError` without the master key.
    """
    folder = settings.data_dir.expanduser()
    master = settings.key_file or folder / "master.key"
    has_keys = _KEYS in backup.hashes or (folder / _KEYS).exists()
    if has_keys and not master.expanduser().exists():
        raise ConfigError(f"put the master key back first: {master} is not there")
    put_back(backup, folder, kept=(_KEYS, *_AUDIT))
    without_keys = _mend(folder, has_keys=has_keys)
    orders = list(_orders_since(backup, folder))
    restored = Restored(*asyncio.run(_forget(settings, orders)), without_keys)
    audit = AuditLog(folder / _AUDIT[0])
    audit.append("restored", who="sfic restore", why=backup.folder.name, what=asdict(restored))
    audit.close()
    return restored


def _mend(folder: Path, *, has_keys: bool) -> int:
    """Drop the faces whose keys are gone and rename the log; returns how many they were."""
    with closing(sqlite3.connect(folder / "edge.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        kept = "SELECT NULL WHERE 0"
        if has_keys:
            connection.execute("ATTACH ? AS keys", (str(folder / _KEYS),))
            kept = "SELECT face_id FROM keys.layer_keys WHERE layer = 'basic'"
        connection.execute("BEGIN IMMEDIATE")
        gone = connection.execute(
            f"DELETE FROM faces WHERE sealed = 1 AND face_id NOT IN ({kept})"
        ).rowcount
        connection.execute(
            "UPDATE log_state SET log_id = lower(hex(randomblob(8))),"
            " faces = (SELECT count(*) FROM faces),"
            " bytes = (SELECT coalesce(sum(size), 0) FROM faces)"
        )
        connection.execute("COMMIT")
    return gone


def _orders_since(backup: Backup, folder: Path) -> Iterator[control_pb2.ForgetScope]:
    """Orders to forget on the audit log behind the lines that the backup has of it."""
    if not (folder / _AUDIT[0]).exists():
        return
    lines, _ = read_log(folder / _AUDIT[0])
    known = 0
    if _AUDIT[0] in backup.hashes:
        known = len((backup.folder / _AUDIT[0]).read_text().splitlines())
    for number, line in enumerate(lines, start=1):
        if number <= known:
            continue
        try:
            record = json.loads(line)
            if record["action"] == "forget ordered":
                yield ParseDict(record["what"], control_pb2.ForgetScope())
        except (ValueError, KeyError, TypeError, ParseError) as error:
            raise AuditBroken(f"{folder / _AUDIT[0]}: line {number} cannot be read") from error


async def _forget(settings: EdgeSettings, orders: list[control_pb2.ForgetScope]) -> tuple[int, int]:
    """Carry orders out on the store; returns the faces left, and how many were forgotten."""
    metrics = EdgeMetrics(CollectorRegistry())
    store = FaceStore(
        settings.data_dir.expanduser() / "edge.sqlite",
        metrics,
        retention_seconds=settings.retention_hours * 3600,
        retention_bytes=settings.retention_bytes,
        key_file=settings.key_file,
    )
    try:
        await store.recover()
        forgotten = 0
        for scope in orders:
            _, faces = await store.forget(scope)
            forgotten += faces
        count = await store.database.read(
            lambda c: c.execute("SELECT count(*) FROM faces").fetchone()
        )
    finally:
        store.close()
    return int(count[0]), forgotten
