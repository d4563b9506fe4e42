"""The page of the load benchmark: tables, plots, and what a number of cameras needs.

Belongs here: what follows from the figures, and how they are shown. Measuring is `benchmarks.load`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import markdown_table, write_markdown
from sfic.evaluation.plots import Line, rate_plot

__all__ = ["Habit", "layout", "recorder_share", "write_page"]

DAY = 86_400
RTSP_BITS = 512_000
"""A second, of one substream (640x360, H.264), as recorders are usually set. Not measured."""


class Habit:
    """What a camera does, in the tables: assumed, not measured."""

    frames_a_second = 1.0
    """That a camera sends to its edge."""
    faces_a_day = 2_000
    peak = 10.0
    """The busiest hour over the mean."""
    looked_at = 0.01
    """Share of the faces that somebody reconstructs."""


def recorder_share(wire: dict[str, float], faces_a_day: float) -> dict[str, float]:
    """Bytes a day and site that leave for the cloud, and their share of two RTSP substreams."""
    ours = faces_a_day * (wire["basic_batches"] + Habit.looked_at * wire["higher_layers"])
    theirs = 2 * RTSP_BITS / 8 * DAY
    return {"sfic": round(ours), "two_rtsp": round(theirs), "times_less": round(theirs / ours, 1)}


def layout(cameras: int, figures: dict[str, Any]) -> dict[str, float]:
    """What so many cameras need, by the measured cost of each message and the habit above.

    Cores are those of the machine that measured. A subscriber's share of the edge is left out: an
    edge sends each face once, to analytics or to NATS.
    """
    streams = figures["cameras"]["streams"]
    frame = min(row["edge_cpu_ms_a_frame"] for row in streams if row["frames"] == "one face") / 1e3
    analytics = figures["analytics"]["analytics_cpu_ms_a_face"] / 1e3
    faces = cameras * Habit.faces_a_day / DAY
    return {
        "cameras": cameras,
        "faces_a_second_at_peak": round(faces * Habit.peak, 1),
        "edge_cores": math.ceil(cameras * Habit.frames_a_second * frame),
        "analytics_cores": math.ceil(faces * Habit.peak * analytics),
        "uplink_megabit": round(8e-6 * faces * Habit.peak * figures["bytes"]["basic_batches"], 3),
        "index_million_faces_a_month": round(faces * DAY * 30 / 1e6, 1),
        "edge_gigabytes_a_week": round(
            7e-9 * faces * DAY * figures["faces"][-1]["bytes_a_face_on_disk"], 1
        ),
    }


def write_page(figures: dict[str, Any], docs: Path) -> Path:
    """Write load.md and its plots into a folder; returns the page's path."""
    docs.mkdir(parents=True, exist_ok=True)
    for name, drawing in _plots(figures).items():
        (docs / f"{name}.svg").write_text(drawing + "\n", encoding="utf-8")
    parts = [
        "What the services carry, measured on one machine in one run; ratios count, times move"
        " with the machine. What follows from it: [scaling](../scaling.md).",
        *_subscribers(figures["subscribers"]),
        *_cameras(figures["cameras"]),
        *_faces(figures["faces"]),
        *_bytes(figures["bytes"]),
        *_costs(figures),
        *_layouts(figures),
    ]
    return write_markdown(docs / "load.md", "Load", parts)


def _plots(figures: dict[str, Any]) -> dict[str, str]:
    rows = figures["subscribers"]
    ways = {
        "batches": "sfic",
        "one_face_a_message": "sfic, one a message",
        "plain": "plain grpc.aio",
    }
    delivered = [
        Line(name, [(row["subscribers"], row[way]["faces_a_second"] / 1e3) for row in rows])
        for way, name in ways.items()
    ]
    fetches = [
        Line(name, [(row["faces"], row[f"fetch_{name}_ms"]) for row in figures["faces"]])
        for name in ("p50", "p99")
    ]
    return {
        "load-subscribers": rate_plot(
            "Basic layers delivered, thousands a second", delivered, axis="subscribers"
        ),
        "load-faces": rate_plot("Fetching the layers of a face, ms", fetches, axis="faces kept"),
    }


def _subscribers(rows: Sequence[dict[str, Any]]) -> list[str]:
    heads = ["subscribers", "sfic", "sfic, one face a message", "plain grpc.aio", "sfic over plain"]
    lines = [
        [
            str(row["subscribers"]),
            *(
                f"{row[way]['faces_a_second']:,.0f}"
                for way in ("batches", "one_face_a_message", "plain")
            ),
            f"**{row['batches_over_plain']:.1f}x**",
        ]
        for row in rows
    ]
    return [
        "## Basic layers to subscribers",
        "Faces delivered a second over all subscribers, who read the whole log. `plain` sends the"
        " same faces from memory, one `grpc.aio` message each, without a store.",
        markdown_table(heads, lines),
        "![Faces a second over subscribers](load-subscribers.svg)",
    ]


def _cameras(found: dict[str, Any]) -> list[str]:
    lines = [
        [
            str(row["cameras"]),
            row["frames"],
            f"{row['frames_a_second']:.1f}",
            f"{row['edge_cpu_ms_a_frame']:.1f}",
            f"{row['of_codec_alone']:.2f}" if "of_codec_alone" in row else "",
        ]
        for row in found["streams"]
    ]
    heads = ["cameras", "frames", "frames a second", "processor ms a frame", "of the codec alone"]
    return [
        "## Cameras to one worker of an edge",
        f"JPEG frames of 512x512. The codec alone, in a loop on one core:"
        f" {found['codec_alone_frames_a_second']:.1f} frames with a face a second.",
        markdown_table(heads, lines),
    ]


def _faces(rows: Sequence[dict[str, Any]]) -> list[str]:
    heads = ["faces kept", "p50 ms", "over fewest", "p99 ms", "over fewest", "stored a second"]
    lines = [
        [
            f"{row['faces']:,}",
            f"{row['fetch_p50_ms']:.2f}",
            f"{row['p50_over_fewest']:.2f}x",
            f"{row['fetch_p99_ms']:.2f}",
            f"{row['p99_over_fewest']:.2f}x",
            f"{row['stored_a_second']:,.0f}",
        ]
        for row in rows
    ]
    return [
        "## Faces kept by one edge",
        "Three sealed layers of a face at random, one `FetchLayers` at a time.",
        markdown_table(heads, lines),
        "![Time of a fetch over faces kept](load-faces.svg)",
    ]


def _bytes(wire: dict[str, float]) -> list[str]:
    lines = []
    for faces in (1_000, 10_000, 100_000, 1_000_000):
        share = recorder_share(wire, faces)
        lines.append(
            [
                f"{faces:,}",
                f"{share['sfic'] / 1e6:,.1f} MB",
                f"{share['two_rtsp'] / 1e9:,.1f} GB",
                f"{share['times_less']:,.0f}x",
            ]
        )
    return [
        "## Bytes a day and site",
        f"A basic layer takes {wire['basic_batches']:.0f} bytes of TCP with its key, its"
        f" description and HTTP/2 ({wire['basic_one_face_a_message']:.0f} in a message of its own),"
        f" middle and enhanced together {wire['higher_layers']:.0f}; without TLS. Assumed: a"
        f" substream has {RTSP_BITS / 1e3:.0f} kbit/s, and {Habit.looked_at:.0%} of the faces are"
        " reconstructed.",
        markdown_table(["faces a day", "sfic", "two RTSP substreams", "less"], lines),
    ]


def costs(figures: dict[str, Any]) -> dict[str, float]:
    """Processor time of the serving process for each message, in milliseconds."""
    one = figures["subscribers"][0]
    streams = figures["cameras"]["streams"]
    return {
        "StreamFrames, a frame with one face": min(
            r["edge_cpu_ms_a_frame"] for r in streams if r["frames"] == "one face"
        ),
        "StreamFrames, a frame without a face": min(
            r["edge_cpu_ms_a_frame"] for r in streams if r["frames"] == "no face"
        ),
        "Subscribe, a face in a batch": one["batches"]["server_cpu_us_a_face"] / 1e3,
        "Subscribe, a face in its own message": one["one_face_a_message"]["server_cpu_us_a_face"]
        / 1e3,
        "FetchLayers, a face": figures["faces"][0]["edge_cpu_ms_a_fetch"],
        "analytics, a face to its kept result": figures["analytics"]["analytics_cpu_ms_a_face"],
    }


def _costs(figures: dict[str, Any]) -> list[str]:
    lines = [[name, f"{value:.3f}"] for name, value in costs(figures).items()]
    return [
        "## What a message costs",
        "Processor time of the service that answers.",
        markdown_table(["message", "ms"], lines),
    ]


def _layouts(figures: dict[str, Any]) -> list[str]:
    heads = [
        "cameras",
        "faces a second at peak",
        "cores of edges",
        "cores of analytics",
        "into the hub, Mbit/s",
        "faces a month, millions",
        "edges' disks a week, GB",
    ]
    rows = [layout(cameras, figures) for cameras in (10, 100, 1_000, 10_000, 100_000)]
    lines = [[f"{value:,}" for value in row.values()] for row in rows]
    return [
        "## What cameras need",
        "Computed from the costs above. Assumed of a camera:"
        f" {Habit.frames_a_second:g} frame a second, {Habit.faces_a_day:,} faces a day, and"
        f" {Habit.peak:g} times the mean in the busiest hour.",
        markdown_table(heads, lines),
    ]
