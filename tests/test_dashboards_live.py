"""The Grafana dashboards on a real Prometheus that scrapes real services in use."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest
from services_util import astronaut_jpeg, empty_jpeg

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))
import dashboards
from dashboards import Prometheus, Series, Span, in_use, panels, watched_services

SCRAPE_SECONDS = 2
# Panels on which a run without a fault has zeros only, and why.
ZERO = {
    ("edge", "Missed by readers"): "nothing is dropped before it is read",
    ("edge", "Dropped by retention a second"): "no face is old, and the store has room",
    ("edge", "Dropped for slow live subscribers a second"): "all keep up",
    ("edge", "Published to NATS a second"): "there is no NATS",
    ("edge", "Faces waiting for NATS"): "there is no NATS",
    ("edge", "Connected to NATS"): "there is no NATS",
    ("analytics", "Missed"): "nothing is dropped before it is read",
    ("analytics", "Faces too poor to be read a second"): "the face is a good one",
    ("analytics", "Deleted a second"): "no result is old, and nobody is forgotten",
    ("analytics", "Failures and alerts deleted a second"): "none is old",
    ("analytics", "Commits that failed a second"): "the disk takes everything",
}
# Panels of what waits or runs just now: at the moments of a few scrapes it may be nothing.
MOMENTS = {
    ("edge", "Frames in work"),
    ("analytics", "Waiting"),
    ("analytics", "Not yet sent, by hook"),
    ("decoder", "Requests now"),
    ("decoder", "Requests running and queued"),
    ("decoder", "Calls running, by method"),
}
# Whose calls a dashboard shows, besides those for health.
CONTRACTS = {
    "edge": {
        f"sfic.v1.{name}" for name in ("EdgeIngest", "BasicLayerFeed", "LayerStore", "EdgeControl")
    },
    "analytics": {"sfic.v1.Analytics"},
    "decoder": {"sfic.v1.CloudDecoder"},
}
# What becomes of the frames sent; STORAGE is counted from 0 on.
SENT = {"kept", "empty", "PICTURE_UNREADABLE", "STORAGE"}

Answers = dict[tuple[str, str, str], list[Series]]


def answers(prometheus: Prometheus, start: float) -> Answers:
    """By dashboard, title and query, of all that have a query; one that is refused raises."""
    span = Span(start, time.time(), SCRAPE_SECONDS)
    found: Answers = {}
    for path in dashboards.DASHBOARDS:
        dashboard = json.loads(path.read_text())
        offered = prometheus.variables(dashboard)
        assert {len(values) for _, values in offered.values()} == {1}, (path.stem, offered)
        variables = {name: everything for name, (everything, _) in offered.items()}
        for panel in panels(dashboard):
            for target in panel["targets"]:
                key = path.stem, panel["title"], target["refId"]
                assert key not in found
                found[key] = prometheus.answer(target, variables, span)
    return found


def missing(found: Answers) -> set[tuple[str, str]]:
    """Panels of which a query has no number, or none but 0 where something has to be shown."""
    lacking = set()
    for (dashboard, title, _), series in found.items():
        values = [value for each in series for _, value in each.points]
        shows = any(values) or (dashboard, title) in ZERO or (dashboard, title) in MOMENTS
        if not values or not shows:
            lacking.add((dashboard, title))
    return lacking


def outcomes(found: Answers) -> set[str]:
    """Of frames, as the edge's dashboard has them."""
    return {series.name for series in found["edge", "Frames a second by outcome", "A"]}


@pytest.mark.skipif(
    dashboards.PROMETHEUS is None, reason="prometheus is not here (Debian package prometheus)"
)
async def test_every_panel_is_answered_and_shows_what_happens(tmp_path: Path) -> None:
    face, start = astronaut_jpeg(), time.time()
    cameras = {"door": [face, face, empty_jpeg(), face[:5000]]}
    async with watched_services(tmp_path, SCRAPE_SECONDS) as (at, prometheus):
        async with in_use(at, cameras, face, frame_seconds=0.5, look_seconds=0.5):
            deadline = time.monotonic() + 120
            while (left := missing(found := answers(prometheus, start))) or outcomes(found) < SENT:
                assert time.monotonic() < deadline, (left, outcomes(found))
                await asyncio.sleep(SCRAPE_SECONDS)
        rules = prometheus.get("/rules")["groups"]
    for (dashboard, title, _), series in found.items():
        if (dashboard, title) in ZERO:
            assert not any(value for each in series for _, value in each.points), title
    assert {(d, t) for d, t, _ in found} >= set(ZERO) | MOMENTS
    assert outcomes(found) == SENT
    assert [s.points[-1][1] for s in found["analytics", "Edges connected", "A"]] == [1.0]
    for dashboard, names in CONTRACTS.items():  # not those of the other services
        called = found[dashboard, "Calls running, by method", "A"]
        assert {series.name.split("/")[1] for series in called} <= {"grpc.health.v1.Health", *names}
    # The alerts are evaluated on the same services.
    alerts = [rule for group in rules for rule in group["rules"]]
    assert len(alerts) > 15
    assert {rule["health"] for rule in alerts} == {"ok"}
    assert not [rule["name"] for rule in alerts if rule["state"] == "firing"]
