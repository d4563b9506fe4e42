"""SQLite as a service keeps its data: WAL, every commit synced, migrations, off the event loop.

One thread writes, so that writes happen in the order they were asked for; a few threads read, each
on a connection of its own, and never wait for the writer. Tables and queries belong to the
services.
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
from typing import TypeAlias, TypeVar

from sfic.errors import StorageError

__all__ = ["Database", "Migration"]

T = TypeVar("T")

Migration: TypeAlias = str | Callable[[sqlite3.Connection], None]
"""One step of the schema: a SQL script, or a function where rows have to be read to be changed."""


class Database:
    """A database file, opened or made, migrated to the newest schema.

    `migrations[i]` leads from schema version i to i + 1 (`PRAGMA user_version`), in one
    transaction. Raises `StorageError` when the file cannot be used or is of a newer schema.
    The functions given to `read` and `write` run in a thread with a connection to use there only.
    """

    def __init__(self, path: Path, migrations: Sequence[Migration], *, readers: int = 2) -> None:
        self.path = path
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._local = threading.local()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sqlite-write")
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="sqlite-read")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_private(path)
            self._writer.submit(self._migrate, migrations).result()
        except OSError as error:
            self.close()
            raise StorageError(f"cannot use {path}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

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
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return result

    async def scrub(self) -> None:
        """Leave nothing of what was deleted in the files: overwrite it, and empty the log.

        Raises `StorageError` when readers keep the log from being emptied for half a minute.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._empty_log)

    def _empty_log(self) -> None:
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
                connection.execute("ROLLBACK")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self.path, timeout=30.0, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            # What is deleted is biometric data: overwrite it.
            connection.execute("PRAGMA secure_delete = ON")
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    def _migrate(self, migrations: Sequence[Migration]) -> None:
        with self._errors():
            connection = self._connection()
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version > len(migrations):
                raise StorageError(
                    f"{self.path} has schema version {version}, made by a newer release; "
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

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"{self.path}: {error}") from error


def _make_private(path: Path) -> None:
    """Make the file, or the one that is there, readable by its owner alone.

    SQLite gives its log and its index the mode of the database.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
