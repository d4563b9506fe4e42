"""The schema of the analytics database, step by step. A step that was released never changes.

A result is kept as its message (`sfic.v1.FaceAnalysis`), which takes new fields without any change
here, and beside it in one column for each thing that is searched by. A new task that is to be
searched by gets a column: a step that adds it and fills it from the messages, as step 2 does.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from sfic.service.sqlite import Migration
from sfic.v1 import analytics_pb2

__all__ = ["MIGRATIONS"]

_RESULTS = """
    CREATE TABLE results (
        cursor INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, without gaps when given
        face_id TEXT NOT NULL UNIQUE,
        analysed INTEGER NOT NULL,                 -- Unix nanoseconds
        analysis BLOB NOT NULL,                    -- sfic.v1.FaceAnalysis without its embedding
        embedding BLOB NOT NULL                    -- float32, little-endian
    );
    CREATE INDEX results_analysed ON results (analysed);
    CREATE TABLE failures (
        face_id TEXT PRIMARY KEY,
        edge TEXT NOT NULL,
        code TEXT NOT NULL,
        message TEXT NOT NULL,
        happened INTEGER NOT NULL
    );
    CREATE TABLE feeds (
        edge TEXT PRIMARY KEY,
        cursor INTEGER NOT NULL
    );
"""

_SEARCHED: Final = (
    "camera_id TEXT NOT NULL DEFAULT ''",
    "captured INTEGER NOT NULL DEFAULT 0",  # Unix nanoseconds
    "face_score REAL NOT NULL DEFAULT 0",
    "model_bundle TEXT NOT NULL DEFAULT ''",
    # NULL: unknown.
    "age REAL",
    "gender REAL",
    "smile REAL",
    "visit_id TEXT",
)


def _add_searched_columns(connection: sqlite3.Connection) -> None:
    for column in _SEARCHED:
        connection.execute(f"ALTER TABLE results ADD COLUMN {column}")
    # Read whole: the statement must not see rows that it changes itself.
    cursors = [row[0] for row in connection.execute("SELECT cursor FROM results ORDER BY cursor")]
    for cursor in cursors:
        (data,) = connection.execute(
            "SELECT analysis FROM results WHERE cursor = ?", (cursor,)
        ).fetchone()
        message = analytics_pb2.FaceAnalysis.FromString(data)
        connection.execute(
            "UPDATE results SET camera_id = ?, captured = ?, face_score = ?, model_bundle = ?,"
            " age = ?, gender = ?, smile = ? WHERE cursor = ?",
            (
                message.face.camera_id,
                message.face.capture_time.ToNanoseconds(),
                message.face.face_score,
                message.face.model_bundle,
                message.age.value,
                message.gender.value,
                message.smile.value,
                cursor,
            ),
        )


_VISITS = """
    CREATE INDEX results_visit ON results (visit_id);
    CREATE TABLE visits (
        visit_id TEXT PRIMARY KEY,
        camera_id TEXT NOT NULL,
        first INTEGER NOT NULL,         -- capture times, Unix nanoseconds
        last INTEGER NOT NULL,
        last_frame INTEGER NOT NULL,
        newest INTEGER NOT NULL,        -- cursor of the newest result
        faces INTEGER NOT NULL,
        best_face_id TEXT NOT NULL,
        best_score REAL NOT NULL,
        total BLOB NOT NULL             -- sum of the embeddings, float32, little-endian
    );
    CREATE INDEX visits_first ON visits (first);
    CREATE INDEX visits_newest ON visits (newest);
"""

_WATCHLISTS = """
    CREATE TABLE watchlists (
        watchlist_id TEXT PRIMARY KEY,
        purpose TEXT NOT NULL,
        threshold REAL NOT NULL,
        camera_ids TEXT NOT NULL,       -- JSON list; empty: all
        created INTEGER NOT NULL
    );
    CREATE TABLE entries (
        watchlist_id TEXT NOT NULL REFERENCES watchlists ON DELETE CASCADE,
        entry_id TEXT NOT NULL,
        label TEXT NOT NULL,
        threshold REAL,                 -- NULL: the list's
        created INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        model_bundle TEXT NOT NULL,
        embedding BLOB NOT NULL,
        face_id TEXT NOT NULL,          -- the face it was made from; empty: none that is kept
        PRIMARY KEY (watchlist_id, entry_id)
    );
    CREATE TABLE alerts (
        cursor INTEGER PRIMARY KEY AUTOINCREMENT,
        watchlist_id TEXT NOT NULL,
        entry_id TEXT NOT NULL,
        face_id TEXT NOT NULL,
        visit_id TEXT NOT NULL,
        raised INTEGER NOT NULL,
        alert BLOB NOT NULL,            -- sfic.v1.Alert
        UNIQUE (watchlist_id, entry_id, visit_id),
        FOREIGN KEY (watchlist_id, entry_id) REFERENCES entries ON DELETE CASCADE
    );
    CREATE INDEX alerts_raised ON alerts (raised);
    CREATE INDEX alerts_face ON alerts (face_id);
    CREATE INDEX entries_face ON entries (face_id);
"""

_WEBHOOKS = """
    CREATE TABLE hooks (
        name TEXT PRIMARY KEY,
        cursor INTEGER NOT NULL,        -- all up to it is delivered
        delivery_id TEXT,               -- of the delivery under way, NULL: none
        until INTEGER                   -- its last cursor
    );
"""

_FORGETTING = """
    ALTER TABLE feeds ADD COLUMN log_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE feeds ADD COLUMN forget_cursor INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE feeds ADD COLUMN forget_log_id TEXT NOT NULL DEFAULT '';
"""

# What a face that could not be read needs to be read again, by the bundle that it was coded with.
_FAILED_BUNDLES = """
    ALTER TABLE failures ADD COLUMN model_bundle TEXT NOT NULL DEFAULT '';
    ALTER TABLE failures ADD COLUMN edge_cursor INTEGER NOT NULL DEFAULT 0;
"""

_VISITS_OF_A_BUNDLE = """
    ALTER TABLE visits ADD COLUMN model_bundle TEXT NOT NULL DEFAULT '';
    UPDATE visits SET model_bundle = coalesce(
        (SELECT model_bundle FROM results WHERE face_id = best_face_id), '');
"""

MIGRATIONS: Final[tuple[Migration, ...]] = (
    _RESULTS,
    _add_searched_columns,
    _VISITS,
    _WATCHLISTS,
    _WEBHOOKS,
    _FORGETTING,
    _FAILED_BUNDLES,
    _VISITS_OF_A_BUNDLE,
)
