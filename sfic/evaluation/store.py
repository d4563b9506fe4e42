"""What has been measured already, kept in a file, so that an evaluation can be cut off and resumed.

Belongs here: reading and writing of results by picture, codec, setting and examiner. Not here: how
they are made (`sfic.evaluation.run`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from typing_extensions import Self

from sfic.errors import StorageError
from sfic.evaluation.metrics import Judged

__all__ = ["ORIGINAL", "Key", "Result", "Store"]

ORIGINAL = "original"  # in place of a codec: the judges' vectors of the picture itself
_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    picture TEXT NOT NULL, codec TEXT NOT NULL, setting TEXT NOT NULL, examiner TEXT NOT NULL,
    bytes INTEGER NOT NULL, total_bytes INTEGER NOT NULL, figures TEXT NOT NULL,
    vectors BLOB NOT NULL,
    PRIMARY KEY (picture, codec, setting, examiner)
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Key:
    """What a result is of: the crop's digest, the codec's key, the setting's label."""

    picture: str
    codec: str
    setting: str


@dataclass(frozen=True)
class Result:
    """One picture through one codec at one setting."""

    bytes: int
    total_bytes: int
    judged: Judged


class Store:
    """Results of one examiner in an SQLite file. Raises StorageError when it cannot be used."""

    def __init__(self, path: Path, examiner: str) -> None:
        """Open or make the file; results of other examiners stay in it, unseen."""
        self._examiner = examiner
        try:
            self._database = sqlite3.connect(path)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(_SCHEMA)
        except sqlite3.Error as error:
            raise StorageError(f"{path}: not a store of results ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def get(self, key: Key) -> Result | None:
        """The result of `key`, if it is there."""
        row = self._database.execute(
            "SELECT bytes, total_bytes, figures, vectors FROM results"
            " WHERE picture = ? AND codec = ? AND setting = ? AND examiner = ?",
            (key.picture, key.codec, key.setting, self._examiner),
        ).fetchone()
        if row is None:
            return None
        figures = json.loads(row[2])
        flat, vectors, at = np.frombuffer(row[3], "<f4"), {}, 0
        for name, length in figures["lengths"].items():
            vectors[name] = flat[at : at + length]
            at += length
        return Result(row[0], row[1], Judged(figures["values"], vectors))

    def put(self, results: Iterable[tuple[Key, Result]]) -> None:
        """Write results in one transaction."""
        rows = []
        for key, result in results:
            vectors = result.judged.vectors
            figures = {
                "values": result.judged.values,
                "lengths": {name: len(vector) for name, vector in vectors.items()},
            }
            blob = b"".join(vector.astype("<f4").tobytes() for vector in vectors.values())
            rows.append(
                (
                    key.picture,
                    key.codec,
                    key.setting,
                    self._examiner,
                    result.bytes,
                    result.total_bytes,
                    json.dumps(figures),
                    blob,
                )
            )
        try:
            with self._database:
                self._database.executemany(
                    "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
                )
        except sqlite3.Error as error:
            raise StorageError(f"results cannot be written: {error}") from error
