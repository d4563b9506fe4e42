"""The three services for half an hour at full load, then killed, then cut from each other.

    python -m benchmarks.soak [--minutes 30] [--kills 200] [--cut-seconds 180]

1. Soak: cameras that send as fast as receipts come, readers that keep up, and the slowest of
   readers, one message a second. Retention is small, so that it drops all the time. Memory of each
   process is compared from the end of the warm-up to the end.
2. Kills: `kill -9` at random moments under load, so many times for each service.
3. Cut: the link between edge and analytics says nothing for minutes, then heals.

Written to results/soak.json; the exit status is 1 when something that is promised did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from benchmarks.cut_link import CutLink
from benchmarks.report import write_result
from benchmarks.under_load import (
    Load,
    Process,
    Services,
    broken_promises,
    kill_at_random,
    last_cursor_of_edge,
    running,
)

SEED = 5
MOST_GROWTH = 0.05
MOST_REPAIR_SECONDS = 2.0
# Small, so that every store is full long before the warm-up ends.
EDGE_BYTES = 4_000_000
RESULTS = 1_000
CACHE_BYTES = 1_000_000
LIVE_BACKLOG = 200
_SLOW_SECONDS = 1.0
_WARM_UP_PART = 0.2
_COMPARED_PART = 0.1


async def soak(folder: Path, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """Full load for so long; figures, and what did not hold."""
    services = Services(
        folder,
        edge={"retention_bytes": EDGE_BYTES, "live_backlog_faces": LIVE_BACKLOG},
        analytics={
            "max_results": RESULTS,
            "retention_check_seconds": 1,
            "live_backlog_results": LIVE_BACKLOG,
        },
        decoder={"cache_bytes": CACHE_BYTES},
    )
    load = Load(services, cameras=4, pause_seconds=0.0, slow_seconds=_SLOW_SECONDS)
    counts = load.counts
    memory: dict[str, list[int]] = {process.name: [] for process in services.all}
    async with running(services, load):
        # Stores, caches and indexes are full, and what grows with them has grown.
        await _until(lambda: len(counts.results) > 2 * RESULTS, 600.0)
        await asyncio.sleep(seconds * _WARM_UP_PART)
        files = {process.name: _open_files(process) for process in services.all}
        begin, faces = time.perf_counter(), len(counts.acknowledged)
        while (passed := time.perf_counter() - begin) < seconds:
            load.check()
            for process in services.all:
                memory[process.name].append(process.resident_bytes)
            await asyncio.sleep(1.0)
        rate = (len(counts.acknowledged) - faces) / passed
        more_files = {p.name: _open_files(p) - files[p.name] for p in services.all}
        await load.stop_cameras()
        await load.settle(last_cursor_of_edge(folder))
    growth = {name: _growth(resident) for name, resident in memory.items()}
    fed = [face_id for _, face_id in counts.fed]
    read = [face_id for _, face_id in counts.results]
    # What is wrong unless it holds.
    checks = {
        "an acknowledged face did not come out of the feed": set(counts.acknowledged) <= set(fed),
        "a face came out of the feed twice": len(set(fed)) == len(fed),
        "results are not those of the faces fed, each once": read == fed,
        "readers that keep up missed something": counts.missed == 0,
        "no face was dropped for the slowest of readers": counts.slow_missed > 0,
        "memory grew": max(growth.values()) < MOST_GROWTH,
    }
    figures = {
        "seconds_after_warm_up": round(passed),
        "faces_a_second": round(rate, 1),
        "faces_acknowledged": len(counts.acknowledged),
        "faces_delivered": len(fed),
        "results_delivered": len(read),
        "frames_refused": counts.frames_refused,
        "reconstructions": counts.pictures,
        "slowest_readers_got": counts.slow_read,
        "slowest_readers_were_told_they_missed": counts.slow_missed,
        "memory_growth": {name: round(grown, 4) for name, grown in growth.items()},
        "memory_mb_at_the_end": {n: round(values[-1] / 1e6, 1) for n, values in memory.items()},
        "open_files_more": more_files,
    }
    faults = [fault for process in services.all for fault in process.faults]
    return figures, [problem for problem, holds in checks.items() if not holds] + faults


async def kill(folder: Path, kills: int) -> tuple[dict[str, Any], list[str]]:
    """`kill -9` so many times for each service; figures, and what did not hold."""
    services = Services(folder)
    load = Load(services)
    chance = random.Random(SEED)
    async with running(services, load):
        await asyncio.gather(
            *(
                kill_at_random(
                    process,
                    kills,
                    random.Random(chance.random()),
                    functools.partial(load.done_by, process.name),
                )
                for process in services.all
            )
        )
        await load.stop_cameras()
        await load.settle(last_cursor_of_edge(folder))
        problems = await broken_promises(services, load.counts)
    figures = {
        "kills_of_each": kills,
        "faces_acknowledged": len(load.counts.acknowledged),
        "faces_delivered": len(load.counts.fed),
        "results_delivered": len(load.counts.results),
        "reconstructions": load.counts.pictures,
        "repair_seconds": _times({p.name: p.repair_seconds for p in services.all}),
        "start_to_serving_seconds": _times({p.name: p.serving_seconds for p in services.all}),
    }
    for process in services.all:
        problems += process.faults
        if max(process.repair_seconds, default=0.0) > MOST_REPAIR_SECONDS:
            problems.append(f"{process.name} took {max(process.repair_seconds)} s to repair itself")
    return figures, problems


async def cut(folder: Path, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """No byte between edge and analytics for so long; figures, and what did not hold."""
    services = Services(folder)
    async with CutLink(services.edge.address) as link:
        services.analytics.arguments[0] = f'--edges=["{link.address}"]'
        load = Load(services, pause_seconds=0.1)
        async with running(services, load):
            await _until(lambda: len(load.counts.results) > 20, 60.0)
            link.cut()
            await asyncio.sleep(seconds)
            before, waiting = len(load.counts.results), len(load.counts.fed)
            link.heal()
            begin = time.perf_counter()
            await _until(lambda: len(load.counts.results) > before, 120.0)
            resumed = time.perf_counter() - begin
            await load.stop_cameras()
            await load.settle(last_cursor_of_edge(folder))
            caught_up = time.perf_counter() - begin
            problems = await broken_promises(services, load.counts)
    figures = {
        "seconds": seconds,
        "faces_that_waited_at_the_edge": waiting - before,
        "seconds_from_heal_to_first_result": round(resumed, 2),
        "seconds_from_heal_to_all_results": round(caught_up, 2),
        "results_delivered": len(load.counts.results),
    }
    return figures, problems


async def _until(holds: Any, seconds: float) -> None:
    deadline = time.perf_counter() + seconds
    while not holds():
        if time.perf_counter() > deadline:
            raise RuntimeError(f"not within {seconds} s")
        await asyncio.sleep(0.1)


def _growth(resident: Sequence[int]) -> float:
    """How much larger the last part is than the first, as a part of it."""
    part = max(1, int(len(resident) * _COMPARED_PART))
    return statistics.median(resident[-part:]) / statistics.median(resident[:part]) - 1.0


def _times(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"median": round(statistics.median(all_), 3), "longest": round(max(all_), 3)}
        for name, all_ in seconds.items()
        if all_
    }


def _open_files(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def main() -> int:
    """Run all three, print, write results/soak.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak, after warm-up")
    parser.add_argument("--kills", type=int, default=200, help="of each service")
    parser.add_argument("--cut-seconds", type=float, default=180.0)
    args = parser.parse_args()
    # A camera says each time that its edge was killed.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    # Children inherit it.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    figures: dict[str, Any] = {}
    problems: list[str] = []
    for name, run in (
        ("soak", functools.partial(soak, seconds=args.minutes * 60)),
        ("kills", functools.partial(kill, kills=args.kills)),
        ("cut", functools.partial(cut, seconds=args.cut_seconds)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            figures[name], found = asyncio.run(run(Path(folder)))
        problems += [f"{name}: {problem}" for problem in found]
        print(name, figures[name], flush=True)
    figures["problems"] = problems
    print(write_result("soak", figures))
    for problem in problems:
        print(problem, file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())
