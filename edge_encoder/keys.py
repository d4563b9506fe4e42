"""The edge's keys: one for each layer of each face, wrapped by one for each camera and layer.

    master key (a file) --wraps--> camera keys --wrap--> layer keys        RFC 3394, AES key wrap
                                   `------ keys.sqlite ------'

They lie in a database of their own, apart from the sealed layers: a copy of the layers, a backup
too, is noise, and a key that is destroyed here is destroyed everywhere. Sealing and opening is
`sfic.sealing`; who gets a key is `edge_encoder.grants`.
"""

from __future__ import annotations

import secrets
import sqlite3
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from sfic.errors import ConfigError, StorageError
from sfic.sealing import new_layer_key
from sfic.secret_files import write_secret
from sfic.service.sqlite import Database

__all__ = ["KeyStore"]

_MASTER_BYTES = 32
# SQLite takes a limited number of parameters in one statement.
_CHUNK = 500

_MIGRATIONS = (
    """
    CREATE TABLE camera_keys (
        camera_id TEXT NOT NULL,
        layer TEXT NOT NULL,
        wrapped BLOB NOT NULL,
        PRIMARY KEY (camera_id, layer)
    ) WITHOUT ROWID;
    CREATE TABLE layer_keys (
        face_id TEXT NOT NULL,
        layer TEXT NOT NULL,
        camera_id TEXT NOT NULL,
        wrapped BLOB NOT NULL,
        PRIMARY KEY (face_id, layer)
    ) WITHOUT ROWID;
    CREATE INDEX layer_keys_by_camera ON layer_keys (camera_id)
    """,
    """
    CREATE TABLE unconfirmed (face_id TEXT PRIMARY KEY) WITHOUT ROWID
    """,
)


class KeyStore:
    """Keys of one edge's layers; each is kept until it is destroyed."""

    def __init__(self, path: Path, key_file: Path) -> None:
        """Open or make the database and the file of the master key.

        Raises `ConfigError` for a file that others may read or that is no key, `StorageError` when
        there are keys and the file that opens them is gone.
        """
        self._database = Database(path, _MIGRATIONS)
        # Faces that were stored since the last keys were made.
        self._confirmed: set[str] = set()
        try:
            empty = self._database.write_now(
                lambda c: c.execute("SELECT 1 FROM camera_keys LIMIT 1").fetchone() is None
            )
            self._master = _read_master(key_file, may_make=empty)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Finish what was asked for, then close."""
        self._database.close()

    async def make(
        self, faces: Sequence[tuple[str, str, Sequence[str]]]
    ) -> dict[tuple[str, str], bytes]:
        """Fresh keys for (face id, camera id, layers), kept and synced; by face id and layer.

        They stay unconfirmed until the faces are stored: `confirm` tells.
        """

        def work(connection: sqlite3.Connection) -> dict[tuple[str, str], bytes]:
            confirmed, self._confirmed = self._confirmed, set()
            connection.executemany(
                "DELETE FROM unconfirmed WHERE face_id = ?", [(face_id,) for face_id in confirmed]
            )
            connection.executemany(
                "INSERT OR IGNORE INTO unconfirmed VALUES (?)",
                [(face_id,) for face_id, *_ in faces],
            )
            made: dict[tuple[str, str], bytes] = {}
            for face_id, camera_id, layers in faces:
                for layer in layers:
                    key = made[face_id, layer] = new_layer_key()
                    wrapped = aes_key_wrap(self._camera_key(connection, camera_id, layer), key)
                    connection.execute(
                        "INSERT INTO layer_keys (face_id, layer, camera_id, wrapped)"
                        " VALUES (?, ?, ?, ?)",
                        (face_id, layer, camera_id, wrapped),
                    )
            return made

        return await self._database.write(work)

    def confirm(self, face_ids: Sequence[str]) -> None:
        """Note that faces are stored; written down with the next keys that are made."""
        self._confirmed = self._confirmed.union(face_ids)

    async def unconfirmed(self) -> list[str]:
        """Faces whose keys were made and of which nobody said that they were stored."""
        rows = await self._database.read(
            lambda c: c.execute("SELECT face_id FROM unconfirmed").fetchall()
        )
        return [row[0] for row in rows]

    @property
    def is_salvaged(self) -> bool:
        """Whether keys may be missing, because their database was damaged."""
        return self._database.is_salvaged

    async def find(
        self, face_ids: Sequence[str], layers: Sequence[str]
    ) -> dict[tuple[str, str], bytes]:
        """The keys that are kept, by face id and layer."""

        def work(connection: sqlite3.Connection) -> dict[tuple[str, str], bytes]:
            found: dict[tuple[str, str], bytes] = {}
            for chunk in _chunks(face_ids):
                for face_id, layer, wrapped, camera_wrapped in connection.execute(
                    "SELECT k.face_id, k.layer, k.wrapped, c.wrapped FROM layer_keys k"
                    " JOIN camera_keys c ON c.camera_id = k.camera_id AND c.layer = k.layer"
                    f" WHERE k.face_id IN ({_marks(chunk)}) AND k.layer IN ({_marks(layers)})",
                    (*chunk, *layers),
                ):
                    found[face_id, layer] = _unwrap(self._unwrap_camera(camera_wrapped), wrapped)
            return found

        return await self._database.read(work)

    async def destroy(self, face_ids: Sequence[str]) -> None:
        """Destroy the keys of faces, and those of cameras that have no face left."""

        def work(connection: sqlite3.Connection) -> None:
            cameras: set[str] = set()
            for chunk in _chunks(face_ids):
                cameras.update(
                    row[0]
                    for row in connection.execute(
                        f"DELETE FROM layer_keys WHERE face_id IN ({_marks(chunk)})"
                        " RETURNING camera_id",
                        chunk,
                    ).fetchall()
                )
                connection.execute(
                    f"DELETE FROM unconfirmed WHERE face_id IN ({_marks(chunk)})", chunk
                )
            connection.executemany(
                "DELETE FROM camera_keys WHERE camera_id = ?1"
                " AND NOT EXISTS (SELECT 1 FROM layer_keys WHERE camera_id = ?1)",
                [(camera_id,) for camera_id in sorted(cameras)],
            )

        await self._database.write(work)

    async def scrub(self) -> None:
        """Leave nothing of destroyed keys in the database's files."""
        await self._database.scrub()

    def _camera_key(self, connection: sqlite3.Connection, camera_id: str, layer: str) -> bytes:
        row = connection.execute(
            "SELECT wrapped FROM camera_keys WHERE camera_id = ? AND layer = ?", (camera_id, layer)
        ).fetchone()
        if row is not None:
            return self._unwrap_camera(row[0])
        key = new_layer_key()
        connection.execute(
            "INSERT INTO camera_keys VALUES (?, ?, ?)",
            (camera_id, layer, aes_key_wrap(self._master, key)),
        )
        return key

    def _unwrap_camera(self, wrapped: bytes) -> bytes:
        return _unwrap(self._master, wrapped)


def _read_master(path: Path, *, may_make: bool) -> bytes:
    path = path.expanduser()
    if not path.exists():
        if not may_make:
            raise StorageError(
                f"{path} is gone, and with it every face kept: put it back, or start with an empty"
                " data_dir"
            )
        write_secret(path, secrets.token_bytes(_MASTER_BYTES))
    try:
        mode, key = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        raise ConfigError(f"edge.key_file: cannot read {path}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"edge.key_file: others may read {path}: chmod 600 it")
    if len(key) != _MASTER_BYTES:
        raise ConfigError(f"edge.key_file: {path} must hold {_MASTER_BYTES} bytes")
    return key


def _unwrap(wrapping: bytes, wrapped: bytes) -> bytes:
    try:
        return aes_key_unwrap(wrapping, wrapped)
    except (InvalidUnwrap, ValueError) as error:
        raise StorageError(
            "a key does not open: key_file is another one than the faces were kept with"
        ) from error


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _marks(items: Sequence[str]) -> str:
    return ",".join("?" * len(items))
