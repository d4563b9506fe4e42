"""The likeness index alone: the same as comparing all, in pages, after removal, beside adding."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import analytics_service.search
from analytics_service.rough import RoughBlock, Shortlist
from analytics_service.search import Bounds, FaceIndex, Filters, IndexEntry, Match, Place

Vectors = NDArray[np.float32]
WIDTH = 32
BLOCK = 256


def unit(made: NDArray[Any]) -> Vectors:
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def vectors(count: int, seed: int = 5) -> Vectors:
    """Unit vectors around a few hundred persons, float32 [count, WIDTH]."""
    rng = np.random.default_rng(seed)
    persons = rng.normal(size=(300, WIDTH))
    return unit(persons[rng.integers(0, 300, count)] + 0.7 * rng.normal(size=(count, WIDTH)))


def entry(cursor: int, embedding: Vectors | None, **values: Any) -> IndexEntry:
    fields = {
        "camera_id": "c",
        "captured": cursor,
        "face_score": 1.0,
        "age": 30.0,
        "gender": 0.5,
        "smile": 0.5,
    }
    return IndexEntry(cursor=cursor, embedding=embedding, **{**fields, **values})


def filled(made: Vectors, block_rows: int = BLOCK) -> FaceIndex:
    """An index of the vectors, cursors from 1, ages from 0."""
    index = FaceIndex(block_rows)
    for start in range(0, len(made), 500):
        block = made[start : start + 500]
        index.add([entry(start + k + 1, v, age=float(start + k)) for k, v in enumerate(block)])
    return index


def cursors(matches: list[Match]) -> list[int]:
    return [match.cursor for match in matches]


def all_compared(
    faces: dict[int, Vectors], example: Vectors, min_similarity: float = -1.0
) -> list[tuple[int, float]]:
    """Cursors and cosines of all that are similar enough, best first, newest first where equal."""
    names = np.array(list(faces), np.int64)
    cosines = np.einsum("ij,j->i", np.array(list(faces.values())), example).clip(-1.0, 1.0)
    order = np.lexsort((-names, -cosines))
    order = order[cosines[order] >= np.float32(min_similarity)]
    return list(zip(names[order].tolist(), cosines[order].tolist(), strict=True))


def compared(matches: list[Match]) -> list[tuple[int, float]]:
    return [(match.cursor, match.similarity) for match in matches]


@pytest.fixture(scope="module")
def many() -> Vectors:
    return vectors(4000)


KINDS = ["even", "persons", "doubles", "equal", "lone", "zero", "tiny", "signs"]


def drawn(kind: str, count: int, width: int, rng: np.random.Generator) -> Vectors:
    """Embeddings of a kind that is hard in its way, float32 [count, width]."""
    made = rng.normal(size=(count, width))
    if kind == "persons":
        made = rng.normal(size=(5, width))[rng.integers(0, 5, count)] + 0.1 * made
    elif kind == "doubles":
        made = made[rng.integers(0, 1 + count // 10, count)]
    elif kind == "equal":
        made[:] = made[0]
    elif kind == "lone":  # All of a row in one number spoils the scale of its block.
        made[:: max(1, count // 7)] *= np.eye(width)[0] * 1e6 + 1e-6
    elif kind == "signs":  # Halfway between two codes, but for one number.
        made = np.sign(made) * 0.5 / 127
        made[:, 0] = 1.0
    made = unit(made)
    if kind == "zero":
        made[rng.random(count) < 0.5] = 0.0
    elif kind == "tiny":  # Their squares are no floats.
        made *= np.float32(10.0) ** -rng.uniform(14, 36, (count, 1)).astype(np.float32)
    return made


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 700),
    width=st.sampled_from([1, 3, 16, 48, 128]),
    block_rows=st.sampled_from([16, 50, 128]),
    limit=st.integers(1, 60),
    part=st.sampled_from([0.03, 0.3, 1.0]),
    removed=st.sampled_from([0.0, 0.0, 0.05, 0.9]),
    least=st.sampled_from([-1.0, -1.0, 0.0, 0.37, 0.9, 1.0]),
    stranger=st.booleans(),
)
def test_a_search_gives_what_comparing_all_gives(
    kind: str,
    seed: int,
    count: int,
    width: int,
    block_rows: int,
    limit: int,
    part: float,
    removed: float,
    least: float,
    stranger: bool,
) -> None:
    """To the bit, over all pages: cosines, their order, and the order of those that are equal."""
    rng = np.random.default_rng(seed)
    made = drawn(kind, count, width, rng)
    example = unit(rng.normal(size=(1, width)))[0] if stranger else made[rng.integers(count)]
    ages = rng.random(count).astype(np.float32)
    index = FaceIndex(block_rows)
    # Copies are made in between, so that some are older than what is added and removed later.
    for rows in np.array_split(np.arange(count), 3):
        index.add([entry(int(k) + 1, made[k], age=float(ages[k])) for k in rows])
        index.prepare()
    gone = np.flatnonzero(rng.random(count) < removed)
    for rows in np.array_split(rng.permutation(gone), 3):
        index.remove((rows + 1).tolist())
        index.prepare()
    left = {
        k + 1: made[k] for k in np.setdiff1d(np.arange(count), gone).tolist() if ages[k] <= part
    }
    expected = all_compared(left, example, least) if left else []
    filters = Filters(age=Bounds(0.0, float(np.float32(part))))
    after = None
    for start in range(0, len(expected) + 1, limit):
        page = index.search(filters, limit, example, least, after)
        assert compared(page) == expected[start : start + limit]
        if page:
            after = Place(page[-1].similarity, page[-1].cursor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 16, 128])
def test_the_bound_holds_and_is_not_wide(kind: str, width: int) -> None:
    """No rough cosine is further off; and it is not wider than what rounding can do."""
    rng = np.random.default_rng(width)
    made = drawn(kind, 512, width, rng)
    block = RoughBlock.of(made)
    for example in (unit(rng.normal(size=(1, width)))[0], made[3], -made[5]):
        shortlist = Shortlist(example, 1)
        exact = np.einsum("ij,j->i", made, example)
        off = np.abs(shortlist.cosines(block) - exact).max()
        assert off <= shortlist.bound(block)
        # Half a code off in all numbers, of rows and example, were their scales the largest ones.
        assert shortlist.bound(block) < 1.05 * np.sqrt(width) / 127


def test_without_the_bound_the_best_is_missed() -> None:
    """The 8 bits say another one is the nearest: only the bound keeps the right one in."""
    rng = np.random.default_rng(1)
    example = unit(rng.normal(size=(1, 128)))[0]
    made = unit(example + 0.002 * rng.normal(size=(BLOCK, 128)))
    best = int(np.argmax(np.einsum("ij,j->i", made, example)))
    shortlist = Shortlist(example, 1)
    block = RoughBlock.of(made)
    assert int(np.argmax(shortlist.cosines(block))) != best
    shortlist.scan(block, 0, np.ones(BLOCK, bool))
    assert best in shortlist.rows()
    assert cursors(filled(made).search(Filters(), 1, example)) == [best + 1]


def test_few_rows_are_left_in_question() -> None:
    """Else the copy would be for nothing."""
    made = unit(np.random.default_rng(3).normal(size=(4096, 128)))
    shortlist = Shortlist(made[7], 10)
    for start in range(0, 4096, 1024):
        shortlist.scan(RoughBlock.of(made[start : start + 1024]), start, np.ones(1024, bool))
    assert 10 <= len(shortlist.rows()) < 400
    assert 7 in shortlist.rows()


def test_filters_and_thresholds(many: Vectors) -> None:
    index, example = filled(many), many[1234]
    for low, high in ((0, 2999), (3900, 3999), (777, 2311)):
        faces = {k + 1: many[k] for k in range(low, high + 1)}
        found = index.search(Filters(age=Bounds(low, high)), 20, example)
        assert compared(found) == all_compared(faces, example)[:20]
    near = index.search(Filters(), 300, example, 0.6)
    assert 1 < len(near) < 300
    assert compared(near) == all_compared(dict(enumerate(many, 1)), example, 0.6)
    assert index.search(Filters(camera_ids=["elsewhere"]), 5, example) == []


@pytest.mark.parametrize("by_time", [False, True])
def test_pages_join_without_gap_or_repeat(many: Vectors, by_time: bool) -> None:
    """Also where many share a rank, and while new faces come."""
    doubled = np.repeat(many[:600], 2, axis=0)
    index = FaceIndex(BLOCK)
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
        after = Place(last.captured if by_time else last.similarity, last.cursor)
        index.add([entry(5000 + len(read), many[3], captured=0)])
    assert read == expected


def test_removed_faces_are_gone_and_their_rows_are_used_again(many: Vectors) -> None:
    index = filled(many)
    index.prepare()
    rng = np.random.default_rng(2)
    gone = np.unique(np.concatenate((np.arange(1, 1200), rng.integers(1, 4001, 300))))
    index.remove(gone.tolist())
    index.remove([1, 99_999])
    left = np.setdiff1d(np.arange(1, 4001), gone)
    assert len(index) == len(left)
    faces = {k: many[k - 1] for k in left.tolist()}
    for k in left[::100]:
        example = many[k - 1]
        found = index.search(Filters(), 10, example)
        assert compared(found) == all_compared(faces, example)[:10]
    before = index.bytes_used
    for start in range(5000, 9000, 500):
        index.add([entry(start + k, v) for k, v in enumerate(many[:500])])
        index.remove(list(range(start - 500, start)))
        index.search(Filters(), 10, many[0])
    assert index.bytes_used < 2 * before, "rows of removed faces are not used again"
    assert cursors(index.search(Filters(), 1, many[42])) == [8542]


def test_no_copy_of_a_removed_face_is_kept(many: Vectors) -> None:
    """Neither in the row nor in the block, which is dropped; its next copy is of what is left."""
    index = filled(many[: 3 * BLOCK])
    index.prepare()
    blocks = [weakref.ref(index._blocks[number]) for number in range(3)]
    index.remove([BLOCK + 5])
    assert [block() is None for block in blocks] == [False, True, False]
    assert not index._embeddings[BLOCK + 4].any()
    index.prepare()
    copied = Shortlist(many[BLOCK + 4], 1).cosines(index._blocks[1])
    assert np.flatnonzero(copied == 0.0).tolist() == [4]


def test_copies_survive_that_the_rows_before_are_gone(many: Vectors) -> None:
    """The first row that is shown moves into a block that was copied from its beginning on."""
    index = filled(many[: 3 * BLOCK])
    index.remove(list(range(BLOCK + 1, BLOCK + 6)))
    index.prepare()
    index.remove(list(range(1, BLOCK + 1)))
    faces = {k + 1: many[k] for k in range(BLOCK + 5, 3 * BLOCK)}
    found = index.search(Filters(), 9, many[BLOCK + 9])
    assert compared(found) == all_compared(faces, many[BLOCK + 9])[:9]
    assert set(index._blocks) == {1, 2}
    index.remove(list(faces))
    assert not index._blocks


def test_a_copy_made_while_a_face_was_removed_is_not_kept(
    many: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search that made it compares all the same what it left out for the removed one."""
    index, example = filled(many[:BLOCK]), many[9]
    make = RoughBlock.of

    def removed_behind(embeddings: Vectors) -> RoughBlock:
        made = make(embeddings)
        index.remove([10])
        return made

    monkeypatch.setattr(analytics_service.search.RoughBlock, "of", removed_behind)
    found = index.search(Filters(), 1, example)
    assert index._blocks == {}
    others = {k + 1: v for k, v in enumerate(many[:BLOCK]) if k != 9}
    assert compared(found) == all_compared(others, example)[:1]


def test_searches_while_faces_come_and_go(many: Vectors) -> None:
    """What stays is found, first, whatever is added and removed meanwhile, and arrays grow."""
    index = filled(many[:1500])
    done = threading.Event()

    def change() -> None:
        for start in range(10_000, 40_000, 500):
            index.add([entry(start + k, v) for k, v in enumerate(many[2000:2500])])
            index.remove(list(range(start - 900, start - 400)))
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    searches = 0
    while not done.is_set() or not searches:
        k = searches % 1500
        assert cursors(index.search(Filters(), 1, many[k])) == [k + 1]
        searches += 1
    thread.join()


def test_a_broken_embedding_compares_with_nothing(many: Vectors) -> None:
    index = FaceIndex(16)
    broken = many[:32].copy()
    broken[3, 7], broken[4, 2] = np.nan, np.inf
    index.add([entry(k + 1, v) for k, v in enumerate(broken)])
    faces = {k + 1: many[k] for k in range(32) if k not in (3, 4)}
    assert compared(index.search(Filters(), 99, many[0])) == all_compared(faces, many[0])
    assert len(index.search(Filters(), 99)) == 32


def test_unknown_attributes_are_within_no_bounds() -> None:
    index = FaceIndex()
    index.add([entry(1, None, age=None, gender=None, smile=None), entry(2, None)])
    assert cursors(index.search(Filters(), 5)) == [2, 1]
    for bounds in (Bounds(0, 200), Bounds(None, 200), Bounds(0, None)):
        assert cursors(index.search(Filters(age=bounds), 5)) == [2]
