"""Search among a million faces: recall against comparing all, and milliseconds a query.

    python -m benchmarks.search [--faces 1000000] [--queries 200] [--alternatives]

The faces are synthetic: unit vectors of the heads' dimension, drawn around persons (a person has
`--views` faces, whose cosine with each other is about `--similarity`, as the verification figures
of the heads have it). A query is one more view of a person who is there. Filters keep a tenth of
all faces. Persons spread evenly over all dimensions are the hardest case for any index; those of
real faces vary in fewer (`--intrinsic`). `--alternatives` also measures numpy comparing all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analytics_service.search import Bounds, FaceIndex, Filters, IndexEntry
from benchmarks.report import write_result

Vectors = NDArray[np.float32]
WIDTH = 128
TOP = 10


def views_of(persons: Vectors, similarity: float, rng: np.random.Generator) -> Vectors:
    """One view of each person: a unit vector whose cosine with another view is `similarity`."""
    noise = rng.normal(size=persons.shape).astype(np.float32) / np.sqrt(WIDTH)
    made = persons + np.sqrt(1.0 / similarity - 1.0) * noise
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def unit(count: int, intrinsic: int, rng: np.random.Generator) -> Vectors:
    """Unit vectors, evenly spread over a subspace of so many dimensions."""
    base = np.linalg.qr(rng.normal(size=(WIDTH, intrinsic)))[0].T
    made = (rng.normal(size=(count, intrinsic)) @ base).astype(np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def filled(faces: Vectors) -> tuple[FaceIndex, float, float]:
    """The service's index with all faces in, and the seconds that adding and preparing took."""
    index, added = FaceIndex(), 0.0
    for start in range(0, len(faces), 2000):
        block = faces[start : start + 2000]
        entries = [
            IndexEntry(start + k + 1, "camera", start + k, 1.0, (start + k) % 100, 0.5, 0.5, v)
            for k, v in enumerate(block)
        ]
        begin = time.perf_counter()
        index.add(entries)
        added += time.perf_counter() - begin
    begin = time.perf_counter()
    index.prepare()
    return index, added, time.perf_counter() - begin


def truth(faces: Vectors, queries: Vectors, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Cursors of the nearest faces among those wanted, int64 [Q, TOP]."""
    places = np.flatnonzero(wanted)
    best = []
    for query in queries:
        cosines = faces[places] @ query if len(places) < len(faces) else faces @ query
        top = np.argpartition(-cosines, TOP)[:TOP]
        best.append(places[top[np.argsort(-cosines[top])]] + 1)
    return np.array(best)


def measure(
    search: Callable[[Vectors], list[int]], queries: Vectors, right: NDArray[np.int64]
) -> dict[str, Any]:
    """Recall of the TOP nearest, and milliseconds a query on this machine."""
    search(queries[0])
    found, times = 0, []
    for query, expected in zip(queries, right, strict=True):
        begin = time.perf_counter()
        got = search(query)
        times.append(1000 * (time.perf_counter() - begin))
        found += len(set(got) & set(expected.tolist()))
    return {
        f"recall_at_{TOP}": round(found / right.size, 5),
        "median_ms": round(statistics.median(times), 3),
        "p95_ms": round(sorted(times)[int(0.95 * len(times))], 3),
    }


def main() -> None:
    """Measure, print, write results/search.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--views", type=int, default=5, help="faces of a person")
    parser.add_argument("--similarity", type=float, default=0.6, help="of two views of a person")
    parser.add_argument(
        "--intrinsic", type=int, default=WIDTH, help="dimensions that persons differ in"
    )
    parser.add_argument("--alternatives", action="store_true")
    args = parser.parse_args()
    rng = np.random.default_rng(7)
    persons = unit(max(1, args.faces // args.views), args.intrinsic, rng)
    who = rng.integers(0, len(persons), args.faces)
    faces = np.concatenate(
        [views_of(persons[part], args.similarity, rng) for part in np.array_split(who, 20)]
    )
    asked = rng.integers(0, args.faces, args.queries)
    queries = views_of(persons[who[asked]], args.similarity, rng)
    everything = np.ones(args.faces, bool)
    narrow = np.arange(args.faces) % 100 < 10
    right, right_narrow = truth(faces, queries, everything), truth(faces, queries, narrow)
    index, adding, preparing = filled(faces)
    filters = Filters(age=Bounds(0, 9))

    def cursors(query: Vectors, given: Filters = Filters()) -> list[int]:  # noqa: B008
        return [match.cursor for match in index.search(given, TOP, query)]

    figures: dict[str, Any] = {
        "faces": args.faces,
        "dimensions": WIDTH,
        "views_of_a_person": args.views,
        "similarity_of_views": args.similarity,
        "intrinsic_dimensions": args.intrinsic,
        "add_us_a_face": round(1e6 * adding / args.faces, 2),
        "prepare_us_a_face": round(1e6 * preparing / args.faces, 2),
        "index_bytes_a_face": round(index.bytes_used / args.faces),
        "search": measure(cursors, queries, right),
        "search_a_tenth": measure(lambda q: cursors(q, filters), queries, right_narrow),
    }
    if args.alternatives:
        figures["alternatives"] = alternatives(faces, queries, right)
    for name, value in figures.items():
        print(f"{name}: {value}", flush=True)
    print(write_result("search", figures))


def alternatives(faces: Vectors, queries: Vectors, right: NDArray[np.int64]) -> dict[str, Any]:
    """What was not chosen."""

    def compare_all(query: Vectors) -> list[int]:
        cosines = faces @ query
        top = np.argpartition(-cosines, TOP)[:TOP]
        return [int(k) + 1 for k in top]

    return {"numpy, all compared": measure(compare_all, queries, right)}


if __name__ == "__main__":
    main()
