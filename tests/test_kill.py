"""`kill -9` at random moments under load: the short form of `python -m benchmarks.soak`."""

from __future__ import annotations

import asyncio
import functools
import random
from pathlib import Path

from benchmarks.under_load import (
    Load,
    Services,
    broken_promises,
    kill_at_random,
    last_cursor_of_edge,
    running,
)

KILLS = {"edge": 8, "analytics": 8, "decoder": 4}
REPAIR_SECONDS = 2.0


async def test_twenty_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    services = Services(tmp_path)
    load = Load(services)
    chance = random.Random(5)
    async with running(services, load):
        await asyncio.gather(
            *(
                kill_at_random(
                    process,
                    KILLS[process.name],
                    random.Random(chance.random()),
                    functools.partial(load.done_by, process.name),
                )
                for process in services.all
            )
        )
        await load.stop_cameras()
        await load.settle(last_cursor_of_edge(tmp_path))
        problems = await broken_promises(services, load.counts)
    for process in services.all:
        problems += process.faults
        assert process.starts == KILLS[process.name] + 1
    assert problems == []
    counts = load.counts
    assert len(counts.acknowledged) > 40, "there was hardly any load"
    assert counts.pictures > 0
    assert counts.frames_refused == 0
    repairs = [*services.edge.repair_seconds, *services.analytics.repair_seconds]
    assert len(repairs) > 10
    assert max(repairs) < REPAIR_SECONDS
