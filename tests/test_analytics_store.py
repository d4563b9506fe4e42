"""What analytics keeps: old schemas come along, visits follow results, and what is forgotten."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analytics_service.records import StoredResult, vector_bytes
from analytics_service.schema import MIGRATIONS
from analytics_service.store import FailedFace, ResultStore, Retention, VisitQuery
from analytics_service.visits import Visit, VisitTracker
from analytics_service.watchlists import Entry, Watchlist, Watchlists, WatchlistStore
from sfic.errors import StorageError
from sfic.v1 import analytics_pb2, control_pb2

SECOND = 10**9
# The schema of the first release, as its databases have it. It never changes.
FIRST_SCHEMA = """
    CREATE TABLE results (
        cursor INTEGER PRIMARY KEY AUTOINCREMENT, face_id TEXT NOT NULL UNIQUE,
        analysed INTEGER NOT NULL, analysis BLOB NOT NULL, embedding BLOB NOT NULL
    );
    CREATE INDEX results_analysed ON results (analysed);
    CREATE TABLE failures (
        face_id TEXT PRIMARY KEY, edge TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL,
        happened INTEGER NOT NULL
    );
    CREATE TABLE feeds (edge TEXT PRIMARY KEY, cursor INTEGER NOT NULL);
    PRAGMA user_version = 1;
"""


def message(face_id: str, **values: Any) -> analytics_pb2.FaceAnalysis:
    face = {
        "face_id": face_id,
        "camera_id": values.pop("camera_id", "door"),
        "frame_number": values.pop("frame_number", 0),
        "face_score": values.pop("face_score", 0.5),
        "model_bundle": "bundle",
    }
    made = analytics_pb2.FaceAnalysis(face=face, **values)
    return made


def result(
    face_id: str, vector: np.ndarray | None, seconds: float, camera_id: str = "door", frame: int = 0
) -> StoredResult:
    """A result captured at a second since 1970, with an embedding or unknown."""
    made = message(face_id, camera_id=camera_id, frame_number=frame)
    return StoredResult(
        cursor=0,
        face_id=face_id,
        analysed=time.time_ns(),
        analysis=made.SerializeToString(),
        embedding=b"" if vector is None else vector_bytes(vector / np.linalg.norm(vector)),
        camera_id=camera_id,
        captured=int(seconds * SECOND),
        face_score=made.face.face_score,
        model_bundle="bundle",
        age=None if vector is None else 30.0,
        gender=None if vector is None else 0.5,
        smile=None if vector is None else 0.5,
    )


def open_store(path: Path, *, watch: bool = False) -> tuple[ResultStore, WatchlistStore]:
    watchlists = Watchlists("bundle", enabled=watch)
    store = ResultStore(path, VisitTracker(30.0, 0.5), watchlists)
    return store, WatchlistStore(store.database, watchlists, entry_days=30, max_entries=3)


async def all_visits(store: ResultStore, **values: Any) -> list[Visit]:
    query = {
        "camera_ids": (),
        "seen_from": None,
        "seen_until": None,
        "min_faces": 1,
        "after": None,
        "limit": 100,
    }
    return await store.visits(VisitQuery(**{**query, **values}))


@pytest.fixture
def person() -> np.ndarray:
    return np.eye(16, dtype=np.float32)[0]


@pytest.fixture
def other() -> np.ndarray:
    return np.eye(16, dtype=np.float32)[1]


def test_the_first_step_is_the_schema_of_the_first_release(tmp_path: Path) -> None:
    def shape(script: str) -> list[tuple[str, ...]]:
        connection = sqlite3.connect(":memory:")
        connection.executescript(script)
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master")]
        columns = [
            (name, *map(str, row))
            for name in sorted(names)
            for row in connection.execute(f"PRAGMA table_info({name})")
        ]
        connection.close()
        return columns

    assert isinstance(MIGRATIONS[0], str)
    assert shape(MIGRATIONS[0]) == shape(FIRST_SCHEMA)


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_every_old_schema_comes_along(
    tmp_path: Path, version: int, person: np.ndarray
) -> None:
    path = tmp_path / "old.sqlite"
    kept = message("F1", camera_id="gate", face_score=0.75, age={"value": 41.5, "confidence": 0.5})
    kept.face.capture_time.FromSeconds(1000)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(FIRST_SCHEMA)
    connection.execute(
        "INSERT INTO results (cursor, face_id, analysed, analysis, embedding)"
        " VALUES (7, 'F1', ?, ?, ?)",
        (time.time_ns(), kept.SerializeToString(), vector_bytes(person)),
    )
    connection.execute("INSERT INTO feeds VALUES ('edge:1', 70)")
    for step in MIGRATIONS[1:version]:
        if callable(step):
            step(connection)
        else:
            connection.executescript(step)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()

    store, _ = open_store(path)
    try:
        (old,) = await store.page(0, 10)
        assert (old.cursor, old.face_id, old.camera_id) == (7, "F1", "gate")
        assert (old.captured, old.face_score, old.age) == (1000 * SECOND, 0.75, 41.5)
        assert old.message().age.confidence == 0.5
        np.testing.assert_array_equal(old.vector(), person)
        assert await store.edge_cursor("edge:1") == 70
        (new,) = (await store.commit([result("F2", person, 1001)], [], {})).results
        assert (new.cursor, new.visit_id) == (8, "F2")
    finally:
        store.close()


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(FIRST_SCHEMA)
    connection.execute(
        "INSERT INTO results (face_id, analysed, analysis, embedding) VALUES ('F', 1, ?, ?)",
        # Not a message: the second step cannot read it.
        (b"\xff\xff", b""),
    )
    connection.commit()
    connection.close()
    with pytest.raises(Exception):  # noqa: B017 - whatever protobuf makes of it
        open_store(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(results)")]
    connection.close()
    assert columns == ["cursor", "face_id", "analysed", "analysis", "embedding"]


async def test_a_minute_before_the_camera_is_one_visit(
    tmp_path: Path, person: np.ndarray, other: np.ndarray
) -> None:
    rng = np.random.default_rng(1)
    store, _ = open_store(tmp_path / "a.sqlite")
    try:
        # 900 results of one person in a minute, someone else passing by, and a face too poor.
        faces = [
            result(f"P{k:03}", person + rng.normal(0, 0.1, 16), 1000 + k / 15, frame=k)
            for k in range(900)
        ]
        faces[450:450] = [result("Q", other, 1030, frame=449), result("U", None, 1030, frame=450)]
        for start in range(0, len(faces), 64):
            await store.commit(faces[start : start + 64], [], {})
        kept = {r.face_id: r.visit_id for r in await store.page(0, 2000)}
        visits = {visit.visit_id: visit for visit in await all_visits(store)}
    finally:
        store.close()
    assert {kept[f"P{k:03}"] for k in range(900)} == {"P000"}
    assert (kept["Q"], kept["U"]) == ("Q", None)
    assert set(visits) == {"P000", "Q"}
    assert visits["P000"].faces == 900
    assert visits["P000"].first == 1000 * SECOND
    assert visits["P000"].last == faces[-1].captured


async def test_gap_camera_and_frame_part_visits(tmp_path: Path, person: np.ndarray) -> None:
    path = tmp_path / "a.sqlite"
    store, _ = open_store(path)
    await store.commit([result("A", person, 1000)], [], {})
    store.close()
    store, _ = open_store(path)  # A restart does not end a visit.
    try:
        made = await store.commit(
            [
                result("B", person, 1030, frame=1),  # 30 s later: the same
                result("C", person, 1030, frame=1),  # in the same frame: someone else
                result("D", person, 1030, camera_id="gate"),
                result("E", person, 1061, frame=2),  # too late for any of them
                result("F", person, 1055, frame=3),  # late in coming, of the last one's time
            ],
            [],
            {},
        )
        assert [r.visit_id for r in made.results] == ["A", "C", "D", "E", "E"]
        visits = await all_visits(store)
        assert [visit.visit_id for visit in visits] == ["E", "D", "C", "A"]
        assert visits[0].first == 1055 * SECOND
        first, second = visits[:2], visits[2:]
        after = (first[-1].first, first[-1].visit_id)
        assert await all_ids(store, after=after) == [visit.visit_id for visit in second]
        assert await all_ids(store, camera_ids=["gate"]) == ["D"]
        assert await all_ids(store, min_faces=2) == ["E", "A"]
        assert await all_ids(store, seen_until=1010 * SECOND) == ["A"]
        assert await all_ids(store, seen_from=1031 * SECOND) == ["E"]
    finally:
        store.close()


async def all_ids(store: ResultStore, **values: Any) -> list[str]:
    return [visit.visit_id for visit in await all_visits(store, **values)]


async def test_a_commit_that_fails_leaves_visits_as_they_were(
    tmp_path: Path, person: np.ndarray
) -> None:
    from dataclasses import replace

    store, _ = open_store(tmp_path / "a.sqlite")
    try:
        broken = replace(result("B", person, 1001), analysed=None)  # type: ignore[arg-type]
        with pytest.raises(StorageError):
            await store.commit([result("A", person, 1000), broken], [], {"edge": 5})
        assert await all_visits(store) == []
        assert await store.edge_cursor("edge") == 0
        made = await store.commit([result("B", person, 1001), result("A", person, 1000)], [], {})
        assert [r.visit_id for r in made.results] == ["B", "B"], "no visit A was left behind"
    finally:
        store.close()


def forget_order(*face_ids: str, camera_id: str = "") -> control_pb2.FollowForgottenResponse:
    scope = {"face_ids": face_ids, "camera_id": camera_id}
    return control_pb2.FollowForgottenResponse(cursor=1, log_id="log", scope=scope)


async def test_forgotten_faces_leave_nothing(
    tmp_path: Path, person: np.ndarray, other: np.ndarray
) -> None:
    path = tmp_path / "a.sqlite"
    store, lists = open_store(path, watch=True)
    await lists.put(Watchlist("staff", "a test", 0.9, ()))
    entry = Entry("staff", "one", "One", None, "bundle", person, face_id="A")
    await lists.put_entry(entry)
    await lists.put_entry(Entry("staff", "two", "Two", None, "bundle", person))
    tilted = person + 0.3 * other
    made = await store.commit(
        [result("A", person, 1000), result("B", tilted, 1001, frame=1), result("C", other, 1002)],
        [FailedFace("D", "edge", "PACKET", "", time.time_ns(), "bundle", 4)],
        {},
    )
    assert made.alerts == 2
    assert await store.forget("edge", forget_order("A", "D", "nobody")) == [1]
    assert await store.by_face("A") is None
    assert await store.failures() == []
    assert [entry.entry_id for entry in await lists.entries("staff")] == ["two"]
    assert await lists.alerts(0, 10) == []
    visits = {visit.visit_id: visit for visit in await all_visits(store)}
    assert (visits["A"].faces, visits["A"].best_face_id) == (1, "B")
    (left,) = [r for r in await store.page(0, 9) if r.face_id == "B"]
    np.testing.assert_array_equal(visits["A"].total, left.vector())
    # The visit that is left goes on as its faces are, and goes with the last of them.
    made = await store.commit([result("E", tilted, 1003, frame=3)], [], {})
    assert made.results[0].visit_id == "A"
    await store.forget("edge", forget_order("B", "E"))
    assert await all_ids(store) == ["C"]
    assert await store.forget("edge", forget_order(camera_id="gate")) == []
    await store.forget("edge", forget_order(camera_id="door"))
    store.close()
    assert vector_bytes(other) not in path.read_bytes()


async def test_a_database_over_its_bytes_drops_the_oldest_results(
    tmp_path: Path, person: np.ndarray
) -> None:
    store, _ = open_store(tmp_path / "a.sqlite")

    async def used() -> int:
        pages, free = await store.database.read(
            lambda c: [
                c.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count")
            ]
        )
        return int(pages - free) * 4096

    try:
        made = [result(f"face {n:04}", person, n * 60.0) for n in range(2000)]
        await store.commit(made, [], {})
        limit = await used() // 2
        over = Retention(oldest=0, max_results=10_000, max_bytes=2 * limit + 4096)
        assert (await store.prune(over)).cursors == []
        gone = (await store.prune(replace(over, max_bytes=limit))).results["bytes"]
        assert gone == list(range(1, len(gone) + 1))
        assert 800 < len(gone) < 1400
        assert await used() < 1.2 * limit
        left = [row.cursor for row in await store.page(0, 3000)]
        assert left == list(range(len(gone) + 1, 2001))
    finally:
        store.close()


async def test_retention_takes_visits_and_alerts_along(tmp_path: Path, person: np.ndarray) -> None:
    store, lists = open_store(tmp_path / "a.sqlite", watch=True)
    try:
        await lists.put(Watchlist("staff", "a test", 0.9, ()))
        await lists.put_entry(Entry("staff", "one", "One", None, "bundle", person))
        for k in range(4):
            await store.commit([result(f"F{k}", person, 1000 * k)], [], {})
        assert len(await lists.alerts(0, 10)) == 4
        pruned = await store.prune(Retention(oldest=0, max_results=3, max_bytes=2**40))
        assert pruned.cursors == pruned.results["count"] == [1]
        assert await all_ids(store) == ["F3", "F2", "F1"]
        pruned = await store.prune(Retention(oldest=time.time_ns(), max_results=3, max_bytes=2**40))
        assert pruned.cursors == pruned.results["age"] == [2, 3, 4]
        assert await all_ids(store) == []
        assert await lists.alerts(0, 10) == []
        assert await store.newest_cursor() == 4
    finally:
        store.close()
