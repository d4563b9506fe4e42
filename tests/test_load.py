"""The load benchmark: its page says what follows from the figures; a small run of one part."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from services_util import astronaut_pixels, codec

from benchmarks.load import measure_bytes
from benchmarks.load_page import Habit, layout, recorder_share, write_page


def way(faces: float) -> dict[str, float]:
    return {"faces_a_second": faces, "server_cpu_us_a_face": 1e6 / faces}


FIGURES: dict[str, Any] = {
    "subscribers": [
        {
            "subscribers": count,
            "plain": way(10_000),
            "one_face_a_message": way(9_000),
            "batches": way(90_000),
            "batches_over_plain": 9.0,
        }
        for count in (1, 16)
    ],
    "cameras": {
        "codec_alone_frames_a_second": 20.0,
        "streams": [
            {"frames": kind, "cameras": 4, "frames_a_second": 18.0, "edge_cpu_ms_a_frame": cpu}
            for kind, cpu in (("one face", 50.0), ("no face", 20.0))
        ],
    },
    "faces": [
        {
            "faces": faces,
            "fetch_p50_ms": 1.0,
            "fetch_p99_ms": 2.0,
            "p50_over_fewest": 1.0,
            "p99_over_fewest": 1.0,
            "edge_cpu_ms_a_fetch": 0.5,
            "stored_a_second": 4_000.0,
            "bytes_a_face_on_disk": 1_000,
        }
        for faces in (1_000, 10_000)
    ],
    "bytes": {"basic_batches": 280.0, "basic_one_face_a_message": 300.0, "higher_layers": 500.0},
    "analytics": {"analytics_cpu_ms_a_face": 2.0},
}


def test_a_recorder_sends_two_substreams_all_day() -> None:
    share = recorder_share(FIGURES["bytes"], 10_000)
    assert share["sfic"] == 10_000 * (280 + Habit.looked_at * 500)
    assert share["two_rtsp"] == 2 * 512_000 // 8 * 86_400
    assert share["times_less"] == pytest.approx(share["two_rtsp"] / share["sfic"], abs=0.1)


def test_what_cameras_need_follows_from_what_messages_cost() -> None:
    small, large = (layout(cameras, FIGURES) for cameras in (100, 100_000))
    # 50 ms for each frame, one frame a second.
    assert (small["edge_cores"], large["edge_cores"]) == (5, 5_000)
    peak = 100_000 * Habit.faces_a_day / 86_400 * Habit.peak
    assert large["faces_a_second_at_peak"] == pytest.approx(peak, abs=0.1)
    assert large["analytics_cores"] == 47 and small["analytics_cores"] == 1
    assert large["uplink_megabit"] == pytest.approx(8e-6 * peak * 280, abs=0.01)


def test_the_page_has_every_part_and_its_plots(tmp_path: Path) -> None:
    page = write_page(FIGURES, tmp_path)
    text = page.read_text()
    assert "**9.0x**" in text and "100,000" in text
    for name in ("load-subscribers", "load-faces"):
        assert f"({name}.svg)" in text
        drawn = ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
        assert drawn.tag.endswith("svg")


async def test_bytes_are_measured_on_the_wire_of_a_real_edge(tmp_path: Path) -> None:
    found = await measure_bytes(tmp_path, codec())
    basic = len(codec().encode_picture(astronaut_pixels())[0].basic)
    assert basic < found["basic_batches"] < found["basic_one_face_a_message"] < basic + 400
