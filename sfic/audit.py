"""The audit log: one line for each grant, reconstruction and order to forget, chained by hashes.

A line is a JSON object that carries the hash of the line before it and its own (SHA-256), so that a
line cannot be changed, removed or put in without breaking the chain; the hash of the last line also
lies in a file of its own, so that the end cannot be cut off. Somebody who can write all files can
write another history: note the head elsewhere from time to time (`sfic audit verify` prints it),
and a later `verify --head` finds it, or not. Who may read the log over gRPC:
`sfic.service.access`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import structlog

from sfic.errors import StorageError
from sfic.secret_files import write_secret

__all__ = ["FIRST", "AuditLog", "Verdict", "read_log", "verify_lines"]

log = structlog.get_logger(__name__)

FIRST: Final = "0" * 64
"""What stands for the hash of the line before the first."""
_LOST: Final = "f" * 64
_TAIL_BYTES: Final = 64 * 1024
_LONGEST_LINE: Final = 16 * 1024


class AuditLog:
    """The log of one service, in a file that only it writes. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Open or make it; a line that a crash cut off is taken away, it was never confirmed.

        A log that was changed while nobody wrote it does not stop the service: it is logged, and
        the break stays in the chain for `verify` to find. Raises `StorageError`.
        """
        self.path = path
        self._lock = threading.Lock()
        self._torn = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._file = os.fdopen(descriptor, "ab+", buffering=0)
            self._head = self._find_head()
            self._size = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise StorageError(f"cannot use {path}: {error.strerror or error}") from error

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self._head

    def append(self, action: str, *, who: str, why: str, what: dict[str, Any]) -> None:
        """Write a line; synced to disk when this returns.

        Raises `StorageError`, and then leaves no part of the line.
        """
        with self._lock:
            record: dict[str, Any] = {
                "time": datetime.fromtimestamp(time.time(), timezone.utc).isoformat(),
                "action": action,
                "who": who,
                "why": why,
                "what": what,
                "previous": self._head,
            }
            record["hash"] = _hash(record)
            line = json.dumps(record, sort_keys=True).encode() + b"\n"
            try:
                self._cut_torn_line()
                self._write(line)
                write_secret(_head_file(self.path), record["hash"].encode())
            except OSError as error:
                self._torn = True
                with contextlib.suppress(OSError):
                    self._cut_torn_line()
                raise StorageError(f"{self.path}: {error.strerror or error}") from error
            self._head = record["hash"]
            self._size += len(line)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())

    def _cut_torn_line(self) -> None:
        """Take away what a failed write has left: the next line must follow a whole one."""
        if self._torn:
            os.ftruncate(self._file.fileno(), self._size)
            os.fsync(self._file.fileno())
            self._torn = False

    def _find_head(self) -> str:
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - _TAIL_BYTES))
        tail = self._file.read()
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            self._file.truncate(size - (len(tail) - whole))
        lines = tail[:whole].splitlines()
        last = _parse(lines[-1].decode("utf-8", "replace")) if lines else None
        try:
            head = _head_file(self.path).read_text()
        except FileNotFoundError:
            head = FIRST if not size else _LOST
        ends_with = last["hash"] if last else FIRST
        if last and last["previous"] == head:
            # Stopped between the line and the head.
            write_secret(_head_file(self.path), ends_with.encode())
            return str(ends_with)
        if ends_with != head:
            log.error("the audit log was changed from outside", path=str(self.path))
        return head


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a log, nothing if it is whole; its number of lines, and its head."""

    problems: list[str]
    lines: int
    head: str


def verify_lines(lines: Iterable[str], head: str, noted: str = "") -> Verdict:
    """Check a log against its head, and whether a head `noted` earlier is in it."""
    problems, previous, number, seen = [], FIRST, 0, not noted or noted == FIRST
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is None:
            problems.append(f"line {number} is not one of an audit log")
            continue
        given = record.pop("hash")
        if _hash(record) != given:
            problems.append(f"line {number} was changed")
        if record["previous"] != previous:
            problems.append(f"line {number} does not follow the line before it")
        previous = given
        seen = seen or given == noted
    if previous != head:
        problems.append("lines at the end are missing, or were added")
    if not seen:
        problems.append("the head noted earlier is not in this log")
    return Verdict(problems, number, previous)


def read_log(path: Path) -> tuple[Iterator[str], str]:
    """The lines of a log and its head. Raises `StorageError`."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
        head_file = _head_file(path)
        head = head_file.read_text() if head_file.exists() else FIRST if not lines else _LOST
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return iter(lines), head


def _head_file(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if len(line) <= _LONGEST_LINE else None
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    kinds = (record.get("previous"), record.get("hash"))
    return record if all(isinstance(each, str) for each in kinds) else None
