"""The likeness index alone: exact, over the graph, in pages, after removal, over a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from analytics_service.nearest import NearestIndex
from analytics_service.search import Bounds, FaceIndex, Filters, IndexEntry, Match, Place

WIDTH = 32


def vectors(count: int, seed: int = 5) -> NDArray[np.float32]:
    """Unit vectors around a few hundred persons, float32 [count, WIDTH]."""
    rng = np.random.default_rng(seed)
    persons = rng.normal(size=(300, WIDTH))
    made = persons[rng.integers(0, 300, count)] + 0.7 * rng.normal(size=(count, WIDTH))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def entry(cursor: int, embedding: NDArray[np.float32] | None, **values: Any) -> IndexEntry:
    fields = {
        "camera_id": "c",
        "captured": cursor,
        "face_score": 1.0,
        "age": 30.0,
        "gender": 0.5,
        "smile": 0.5,
    }
    return IndexEntry(cursor=cursor, embedding=embedding, **{**fields, **values})


def filled(made: NDArray[np.float32], exact_faces: int) -> FaceIndex:
    """An index of the vectors, cursors from 1, its graph grown where it has one."""
    index = FaceIndex(exact_faces)
    for start in range(0, len(made), 500):
        block = made[start : start + 500]
        index.add([entry(start + k + 1, v, age=float(start + k)) for k, v in enumerate(block)])
    while index.grow_graph():
        pass
    return index


def cursors(matches: list[Match]) -> list[int]:
    return [match.cursor for match in matches]


def best(made: NDArray[np.float32], example: NDArray[np.float32], count: int) -> list[int]:
    """Cursors of the nearest, by brute force."""
    return (np.argsort(-(made @ example), kind="stable")[:count] + 1).tolist()


@pytest.fixture(scope="module")
def many() -> NDArray[np.float32]:
    return vectors(4000)


@pytest.fixture(scope="module")
def graph(many: NDArray[np.float32]) -> FaceIndex:
    """Searched only: tests that change an index make their own."""
    return filled(many, exact_faces=1000)


def test_graph_finds_what_brute_force_finds(graph: FaceIndex, many: NDArray[np.float32]) -> None:
    assert graph.waiting == 0
    found = wanted = 0
    for k in range(0, 4000, 40):
        matches = graph.search(Filters(), 10, many[k])
        assert matches[0].cursor == k + 1
        assert matches[0].similarity == pytest.approx(1.0, abs=1e-5), "cosines are exact"
        found += len(set(cursors(matches)) & set(best(many, many[k], 10)))
        wanted += 10
    assert found / wanted > 0.99


def test_filters_and_thresholds_hold_over_the_graph(
    graph: FaceIndex, many: NDArray[np.float32]
) -> None:
    example = many[1234]
    wide = Filters(age=Bounds(0, 2999))  # more than are compared exactly: over the graph
    assert cursors(graph.search(wide, 20, example)) == best(many[:3000], example, 20)
    narrow = Filters(age=Bounds(3900, None))
    assert cursors(graph.search(narrow, 20, example)) == [
        3900 + cursor for cursor in best(many[3900:], example, 20)
    ]
    cosines = many @ example
    near = set((np.flatnonzero(cosines >= 0.6) + 1).tolist())
    assert 1 < len(near) < 300
    assert set(cursors(graph.search(Filters(), 300, example, 0.6))) == near
    assert graph.search(Filters(camera_ids=["elsewhere"]), 5, example) == []


@pytest.mark.parametrize("by_time", [False, True])
def test_pages_join_without_gap_or_repeat(many: NDArray[np.float32], by_time: bool) -> None:
    """Also where many share a rank, and while new faces come."""
    doubled = np.repeat(many[:600], 2, axis=0)
    index = FaceIndex(10_000)
    index.add([entry(k + 1, v, captured=k // 7) for k, v in enumerate(doubled)])
    example = None if by_time else many[3]
    filters = Filters(newest_cursor=len(doubled))
    expected = index.search(filters, 2000, example)
    assert len(expected) == len(doubled)
    keys = [(m.captured if by_time else m.similarity, m.cursor) for m in expected]
    assert keys == sorted(keys, reverse=True)
    read: list[Match] = []
    after = None
    while page := index.search(filters, 97, example, after=after):
        read += page
        last = page[-1]
        after = Place(last.captured if by_time else last.similarity, last.cursor, len(read))
        index.add([entry(5000 + len(read), many[3], captured=0)])
    assert read == expected


def test_pages_over_the_graph_reach_far(graph: FaceIndex, many: NDArray[np.float32]) -> None:
    example, read, after = many[77], [], None
    for _ in range(40):
        page = graph.search(Filters(), 50, example, after=after)
        read += page
        after = Place(page[-1].similarity, page[-1].cursor, len(read))
    assert cursors(read) == best(many, example, 2000)


def test_what_the_graph_does_not_hold_yet_is_found(many: NDArray[np.float32]) -> None:
    index = filled(many[:2000], exact_faces=1000)
    index.add([entry(2000 + k + 1, v) for k, v in enumerate(many[2000:2500])])
    assert index.waiting == 500
    for example in (many[2400], many[10]):
        assert cursors(index.search(Filters(), 5, example)) == best(many[:2500], example, 5)


def test_removed_faces_are_gone_and_their_rows_are_used_again(
    many: NDArray[np.float32],
) -> None:
    index = filled(many, exact_faces=1000)
    rng = np.random.default_rng(2)
    gone = np.unique(np.concatenate((np.arange(1, 1200), rng.integers(1, 4001, 300))))
    index.remove(gone.tolist())
    index.remove([1, 99_999])
    left = np.setdiff1d(np.arange(1, 4001), gone)
    assert len(index) == len(left)
    found = wanted = 0
    for k in left[::100]:
        example = many[k - 1]
        expected = left[np.argsort(-(many[left - 1] @ example))[:10]]
        matches = cursors(index.search(Filters(), 10, example))
        assert not set(matches) & set(gone.tolist())
        found += len(set(matches) & set(expected.tolist()))
        wanted += 10
    assert found / wanted > 0.99
    before = index.bytes_used
    for start in range(5000, 9000, 500):
        index.add([entry(start + k, v) for k, v in enumerate(many[:500])])
        index.remove(list(range(start - 500, start)))
    while index.grow_graph():
        pass
    assert index.bytes_used < 2 * before, "rows of removed faces are not used again"
    assert cursors(index.search(Filters(), 1, many[42])) == [8542]


def test_graph_comes_back_after_a_restart(many: NDArray[np.float32], tmp_path: Path) -> None:
    path = tmp_path / "graph.usearch"
    index = filled(many[:3000], exact_faces=1000)
    index.remove([7, 8, 9])
    index.save_graph(path)
    assert path.stat().st_mode & 0o077 == 0
    kept = [entry(k + 1, v) for k, v in enumerate(many[:3200]) if k + 1 not in (7, 8, 9)]

    again = FaceIndex(1000)
    again.add(kept)
    assert again.load_graph(path)
    assert again.waiting == 200
    while again.grow_graph():
        pass
    example = many[3100]
    left = np.delete(many[:3200], [6, 7, 8], axis=0)
    names = np.delete(np.arange(1, 3201), [6, 7, 8])
    assert cursors(again.search(Filters(), 10, example)) == [
        int(names[k - 1]) for k in best(left, example, 10)
    ]


@pytest.mark.parametrize("wrong", ["removed", "others", "cut", "width", "few"])
def test_a_graph_that_does_not_fit_is_not_taken(
    many: NDArray[np.float32], tmp_path: Path, wrong: str
) -> None:
    path = tmp_path / "graph.usearch"
    filled(many[:2000], exact_faces=1000).save_graph(path)
    kept = [entry(k + 1, v) for k, v in enumerate(many[:2000])]
    if wrong == "removed":
        del kept[500]
    elif wrong == "others":
        kept = [entry(k + 1, v) for k, v in enumerate(many[2000:])]
    elif wrong == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif wrong == "width":
        kept = [entry(k + 1, v[:16] / np.linalg.norm(v[:16])) for k, v in enumerate(many[:2000])]
    else:
        kept = kept[:900]
    again = FaceIndex(1000)
    again.add(kept)
    assert not again.load_graph(path)
    again.grow_graph()
    wanted = kept[3].embedding
    assert cursors(again.search(Filters(), 1, wanted)) == [4]


def test_a_removed_embedding_is_not_in_the_file(many: NDArray[np.float32], tmp_path: Path) -> None:
    path = tmp_path / "graph.usearch"
    index = NearestIndex(WIDTH)
    index.add(np.arange(1, 501), many[:500])
    stored = [many[k].astype(np.float16).tobytes() for k in range(500)]
    index.save(path)
    assert all(data in path.read_bytes() for data in stored)
    index.remove(np.array([5, 6, 400, 9999]))
    index.save(path)
    present = [k + 1 for k in range(500) if stored[k] in path.read_bytes()]
    assert present == [k for k in range(1, 501) if k not in (5, 6, 400)]
    assert len(index) == 497


def test_unknown_attributes_are_within_no_bounds() -> None:
    index = FaceIndex(10_000)
    index.add([entry(1, None, age=None, gender=None, smile=None), entry(2, None)])
    assert cursors(index.search(Filters(), 5)) == [2, 1]
    for bounds in (Bounds(0, 200), Bounds(None, 200), Bounds(0, None)):
        assert cursors(index.search(Filters(age=bounds), 5)) == [2]
