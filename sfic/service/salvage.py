"""What can be saved of a damaged SQLite file: is it damaged, and a copy of what can be read.

Belongs here: reading around damaged pages. Does not belong here: when that is done, and what files
are put where (`sfic.service.sqlite`); what the rows mean to a service.

SQLite has no checksums: damage is found where it breaks the structure of the file. Damage inside a
value is found by whoever reads that value; a sealed layer carries its own check.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["copy_readable", "is_damage", "is_whole"]

# Numbers that a damaged `sqlite_sequence` may have given: cursors must never be used again.
_SEQUENCE_MARGIN: Final = 1_000_000


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file itself is damaged, or is no database.

    CPython raises SQLITE_CORRUPT and SQLITE_NOTADB as `DatabaseError` and nothing more special.
    """
    return type(error) is sqlite3.DatabaseError


def is_whole(path: Path) -> bool:
    """Whether all of the file's structure can be read. Other failures raise `sqlite3.Error`."""
    connection = sqlite3.connect(path, timeout=30.0)
    try:
        return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return False
    finally:
        connection.close()


def copy_readable(source: sqlite3.Connection, target: sqlite3.Connection) -> dict[str, int]:
    """Copy every row that can be read into the tables of the same names; rows copied, by table.

    `target` has the schema of `source`. Raises `sqlite3.DatabaseError` when the schema of `source`
    cannot be read: then nothing can.
    """
    tables = source.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    target.execute("PRAGMA foreign_keys = OFF")
    target.execute("BEGIN IMMEDIATE")
    copied: dict[str, int] = {}
    for name, sql in tables:
        info = source.execute(f"PRAGMA table_info({name})").fetchall()
        columns = [str(column[1]) for column in info]
        if "WITHOUT ROWID" in sql.upper():
            key = [column[1] for column in sorted(info, key=lambda c: c[5]) if column[5]]
            rows = _rows_by_key(source, name, columns, key)
        else:
            rows = _rows_by_rowid(source, name, columns)
        marks = ", ".join("?" * len(columns))
        insert = f"INSERT OR REPLACE INTO {name} ({', '.join(columns)}) VALUES ({marks})"
        copied[name] = sum(target.execute(insert, row).rowcount for row in rows)
    _copy_sequences(source, target)
    _drop_without_parents(target)
    target.execute("COMMIT")
    target.execute("PRAGMA foreign_keys = ON")
    return copied


def _rows_by_rowid(
    source: sqlite3.Connection, table: str, columns: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """Rows in order; behind a page that cannot be read it goes on with the next that can."""
    query = (
        f"SELECT rowid, {', '.join(columns)} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?"
    )
    at = -1  # No table of ours has a row below 0.

    def reads(rowid: int) -> bool:
        try:
            return source.execute(query, (rowid, 1)).fetchone() is not None
        except sqlite3.DatabaseError:
            return False

    while True:
        try:
            for row in source.execute(query, (at, -1)):
                at = row[0]
                yield row[1:]
            return
        except sqlite3.DatabaseError:
            # The widths double until a row is found again, then the first such is looked for.
            bad, width = at, 1
            while not reads(at + width):
                bad, width = at + width, width * 2
                if at + width >= 2**63:
                    return
            good = at + width
            while good - bad > 1:
                middle = (good + bad) // 2
                good, bad = (middle, bad) if reads(middle) else (good, middle)
            at = good


def _rows_by_key(
    source: sqlite3.Connection, table: str, columns: Sequence[str], key: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """Rows from the front up to the first damage, then, if there is any, from the end."""
    for order in ("ASC", "DESC"):
        ordered = ", ".join(f"{column} {order}" for column in key)
        try:
            yield from source.execute(
                f"SELECT {', '.join(columns)} FROM {table} ORDER BY {ordered}"
            )
            return
        except sqlite3.DatabaseError:
            continue


def _copy_sequences(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    if not target.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
        return  # No table of this database gives numbers.
    try:
        rows = source.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
    except sqlite3.DatabaseError:
        target.execute("UPDATE sqlite_sequence SET seq = seq + ?", (_SEQUENCE_MARGIN,))
        return
    for name, number in rows:
        if not target.execute(
            "UPDATE sqlite_sequence SET seq = max(seq, ?2) WHERE name = ?1", (name, number)
        ).rowcount:
            target.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, number))


def _drop_without_parents(target: sqlite3.Connection) -> None:
    while orphans := target.execute("PRAGMA foreign_key_check").fetchall():
        for table, rowid, *_ in orphans:
            target.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))
