"""SQLite as a service keeps its data: WAL, every commit synced, migrations, off the event loop.

One thread writes, so that writes happen in the order they were asked for; a few threads read, each
on a connection of its own, and never wait for the writer. Tables and queries belong to the
services, what is saved of a damaged file to `sfic.service.salvage`. docs/durability.md says what a
user is promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import structlog

from sfic.errors import StorageDamaged, StorageError
from sfic.secret_files import sync_folder
from sfic.service.salvage import copy_readable, is_damage, is_whole

__all__ = ["Database", "Migration"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

# A file of this size is checked in a fraction of a second; a larger one when damage was met in it.
_CHECKED_AT_START_BYTES: Final = 64 * 1024 * 1024

Migration: TypeAlias = str | Callable[[sqlite3.Connection], None]
"""One step of the schema: a SQL script, or a function where rows have to be read to be changed."""


class Database:
    """A database file, opened or made, migrated to the newest schema.

    `migrations[i]` leads from schema version i to i + 1 (`PRAGMA user_version`), in one
    transaction. Raises `StorageError` when the file cannot be used or is of a newer schema.
    The functions given to `read` and `write` run in a thread with a connection to use there only.

    A damaged file is found when it is opened, or when it is read (`StorageDamaged`) and then
    repaired by the next opening: what can be read of it is saved into a new one, `salvaged` makes
    that consistent, and the damaged one stays beside it, as NAME.damaged, until the next `scrub`.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[Migration],
        *,
        readers: int = 2,
        salvaged: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        self.path = path
        self._damaged_copy = path.with_name(path.name + ".damaged")
        # Damage was met: the next start looks at the whole file, however large.
        self._suspect = path.with_name(path.name + ".suspect")
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._local = threading.local()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sqlite-write")
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="sqlite-read")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_private(path)
            self._writer.submit(self._open, migrations, salvaged).result()
        except OSError as error:
            self.close()
            raise StorageError(f"cannot use {path}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def is_salvaged(self) -> bool:
        """Whether rows may be missing, because the file was damaged since the last `scrub`."""
        return self._damaged_copy.exists()

    async def write(
        self,
        work: Callable[[sqlite3.Connection], T],
        committed: Callable[[T], None] | None = None,
    ) -> T:
        """Run `work` in one transaction; when this returns, it is committed and synced.

        Once started it runs to its end, also when the caller is cancelled. `committed` is called
        with what `work` gave, in the same thread, before any other write: for state in memory that
        has to follow the database.
        """

        def run() -> T:
            result = self.write_now(work)
            if committed is not None:
                committed(result)
            return result

        return await asyncio.get_running_loop().run_in_executor(self._writer, run)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on one consistent view of the database."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def write_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do as `write`, in the calling thread."""
        with self._errors():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                # A commit that found the disk full leaves the transaction open; some other
                # failures have ended it already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

    async def scrub(self) -> None:
        """Leave nothing of what was deleted in the files: overwrite it, and empty the log.

        A damaged copy that was put aside goes too: it may hold what was deleted.

        Raises `StorageError` when readers keep the log from being emptied for half a minute.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._empty_log)

    def _empty_log(self) -> None:
        self._damaged_copy.unlink(missing_ok=True)
        with self._errors():
            busy, _, _ = self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StorageError(f"{self.path}: readers keep what was deleted in its log")

    def close(self) -> None:
        """Finish what was asked for, then close; waits."""
        self._writer.shutdown()
        self._readers.shutdown()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._errors():
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = _connect(self.path)
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    def _open(
        self,
        migrations: Sequence[Migration],
        salvaged: Callable[[sqlite3.Connection], None] | None,
    ) -> None:
        size = self.path.stat().st_size
        if size and (size <= _CHECKED_AT_START_BYTES or self._suspect.exists()):
            with self._errors():
                whole = is_whole(self.path)
            if not whole:
                self._salvage(migrations, salvaged)
            self._suspect.unlink(missing_ok=True)
        with self._errors():
            _migrate(self._connection(), self.path, migrations)

    def _salvage(
        self,
        migrations: Sequence[Migration],
        salvaged: Callable[[sqlite3.Connection], None] | None,
    ) -> None:
        """Put the damaged file aside and save what can be read of it into a new one.

        After a stop in the middle the next start does it again.
        """
        fresh = self.path.with_name(self.path.name + ".saved")
        for path in _files_of(fresh):
            path.unlink(missing_ok=True)
        _make_private(fresh)
        with self._errors(), contextlib.ExitStack() as stack:
            source = stack.enter_context(contextlib.closing(sqlite3.connect(self.path)))
            target = stack.enter_context(contextlib.closing(_connect(fresh)))
            version = int(source.execute("PRAGMA user_version").fetchone()[0])
            _migrate(target, fresh, migrations[:version])
            rows = copy_readable(source, target)
            _migrate(target, fresh, migrations)
            if salvaged is not None:
                target.execute("BEGIN IMMEDIATE")
                salvaged(target)
                target.execute("COMMIT")
        self._damaged_copy.unlink(missing_ok=True)
        os.link(self.path, self._damaged_copy)
        # Before the new file is there: a log of another file would damage it.
        for path in _files_of(self.path)[1:]:
            path.unlink(missing_ok=True)
        fresh.replace(self.path)
        sync_folder(self.path.parent)
        log.error("damaged database: what can be read was saved", path=str(self.path), rows=rows)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if not is_damage(error):
                raise StorageError(f"{self.path}: {error}") from error
            with contextlib.suppress(OSError):
                self._suspect.touch()
            raise StorageDamaged(
                f"{self.path}: {error}; the next start saves what can be read of it"
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # What is deleted is biometric data: overwrite it.
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(migrations):
        raise StorageError(
            f"{path} has schema version {version}, made by a newer release; "
            f"this one knows {len(migrations)}"
        )
    for number in range(version, len(migrations)):
        step = migrations[number]
        try:
            if isinstance(step, str):
                connection.executescript(f"BEGIN IMMEDIATE; {step};")
            else:
                connection.execute("BEGIN IMMEDIATE")
                step(connection)
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _files_of(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def _make_private(path: Path) -> None:
    """Make the file, or the one that is there, readable by its owner alone.

    SQLite gives its log and its index the mode of the database.
    """
    made = not path.exists()
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    if made:
        sync_folder(path.parent)
