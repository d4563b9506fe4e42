"""Evaluation: curves, codecs that really run, resuming, and reports that open."""

from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sfic.alignment import align
from sfic.codec import Codec
from sfic.detection import FaceDetector
from sfic.errors import InvalidInput, MissingExtra, NoFaceFound, StorageError
from sfic.evaluation import curves
from sfic.evaluation.choose import choose_coders
from sfic.evaluation.codecs import (
    Coded,
    PictureFormat,
    Setting,
    SficCoder,
    SficEncoder,
    VideoCodec,
    av1_picture_bytes,
    hevc_picture_bytes,
    scale,
)
from sfic.evaluation.dataset import Sample, aligned_samples, detected_samples, picture_files
from sfic.evaluation.judges import Judges, kid, psnr256
from sfic.evaluation.metrics import METRICS, Examiner, Judged, SetOfFaces
from sfic.evaluation.plots import Line, byte_ticks, nice_ticks, rate_plot
from sfic.evaluation.report import figures, side_by_side, write_report
from sfic.evaluation.run import Evaluation, Summary, evaluate
from sfic.evaluation.store import Store
from sfic.evaluation.vvc import VvcEncoder, VvcStreams, vvc_picture_bytes

QUICK = ("identity", "rank1", "found", "psnr")


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges()


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load(threads=1)


@pytest.fixture(scope="module")
def crop() -> NDArray[np.uint8]:
    """The astronaut's aligned crop, uint8 [512, 512, 3]."""
    from sfic.locations import demo_photograph
    from sfic.pictures import read_picture

    picture = read_picture(demo_photograph())
    (found,) = FaceDetector().detect(picture)
    return align(picture, found, 512)[0]


@pytest.fixture(scope="module")
def faces(crop: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three aligned faces: the astronaut, mirrored, and darker at 256 px."""
    folder = tmp_path_factory.mktemp("faces")
    Image.fromarray(crop).save(folder / "a.png")
    Image.fromarray(crop[:, ::-1].copy()).save(folder / "b.png")
    Image.fromarray(scale(crop // 2, 256)).save(folder / "c.png")
    return folder


# -- curves


def test_bd_rate_of_scaled_curves_is_the_scale() -> None:
    sizes, quality = [100.0, 210.0, 380.0, 900.0], [0.4, 0.6, 0.75, 0.9]
    for factor in (1.0, 0.5, 1.25):
        other = [factor * size for size in sizes]
        rate = curves.bd_rate((sizes, quality), (other, quality), True)
        assert rate is not None
        assert rate.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
        assert (rate.low, rate.high, rate.covered) == (0.4, 0.9, 1.0)
    # The same with a measure of which less is better.
    rate = curves.bd_rate((sizes, [-q for q in quality]), (other, [-q for q in quality]), False)
    assert rate is not None and rate.percent == pytest.approx(25, abs=1e-9)


def test_bd_rate_equals_the_published_method() -> None:
    """Against scipy's monotone cubic interpolation, integrated by its own antiderivative."""
    interpolate = pytest.importorskip("scipy.interpolate")
    rng = np.random.default_rng(0)
    for _ in range(20):
        anchor, test = (
            (np.cumsum(rng.uniform(20, 300, n)), np.cumsum(rng.uniform(0.3, 3, n)) + 25)
            for n in (rng.integers(2, 9), rng.integers(2, 9))
        )
        low, high = max(anchor[1][0], test[1][0]), min(anchor[1][-1], test[1][-1])
        got = curves.bd_rate(anchor, test, True)
        if high <= low:
            assert got is None
            continue
        areas = []
        for sizes, quality in (anchor, test):
            if len(sizes) == 2:
                line = np.polyint(np.polyfit(quality, np.log(sizes), 1))
                areas.append(np.polyval(line, high) - np.polyval(line, low))
            else:
                cubic = interpolate.PchipInterpolator(quality, np.log(sizes)).antiderivative()
                areas.append(cubic(high) - cubic(low))
        want = 100 * (math.exp((areas[1] - areas[0]) / (high - low)) - 1)
        assert got is not None and got.percent == pytest.approx(want, rel=1e-6, abs=1e-6)
        assert (got.low, got.high) == (low, high)


def test_curves_without_common_quality_have_no_bd_rate() -> None:
    assert curves.bd_rate(([1, 2], [1, 2]), ([1, 2], [3, 4]), True) is None
    assert curves.bd_rate(([1, 2], [1, 2]), ([1], [1]), True) is None
    # Points that are beaten by cheaper ones do not count.
    assert curves.bd_rate(([1, 2], [1, 2]), ([1, 2, 3], [2, 1, 1.5]), True) is None


def test_best_within_a_budget() -> None:
    sizes, identity, vgg = [400.0, 100.0, 200.0], [0.8, 0.4, 0.3], [1.5, 3.0, 2.0]
    assert curves.best_at(sizes, identity, 99, True) is None
    assert curves.best_at(sizes, identity, 100, True) == pytest.approx(0.4)
    # 200 bytes buys a worse identity than 100: the line goes from 100 to 400, over log bytes.
    assert curves.best_at(sizes, identity, 200, True) == pytest.approx(0.6)
    assert curves.best_at(sizes, identity, 5000, True) == pytest.approx(0.8)
    assert curves.best_at(sizes, vgg, 200, False) == pytest.approx(2.0)
    assert curves.best_at(sizes, vgg, 283, False) == pytest.approx(1.75, abs=0.01)


def test_bytes_for_a_value_are_where_the_curve_reaches_it() -> None:
    sizes, vgg = [400.0, 100.0, 200.0], [1.5, 3.0, 2.0]
    for budget in (100, 150, 200, 390):
        value = curves.best_at(sizes, vgg, budget, False)
        assert value is not None
        assert curves.bytes_for(sizes, vgg, value, False) == pytest.approx(budget)
    assert curves.bytes_for(sizes, vgg, 1.4, False) is None
    assert curves.bytes_for(sizes, vgg, 9.0, False) == 100


def test_intervals() -> None:
    rng = np.random.default_rng(3)
    low, high = curves.interval(rng.normal(5, 1, 4000), 5.0)
    assert low == pytest.approx(5 - 1.96, abs=0.15) and high == pytest.approx(5 + 1.96, abs=0.15)
    # The jackknife of a mean has the mean's standard error.
    x = rng.normal(size=50)
    left_out = (x.sum() - x) / 49
    low, high = curves.interval(left_out, float(x.mean()), jackknife=True)
    assert high - low == pytest.approx(2 * 1.96 * x.std(ddof=1) / math.sqrt(50))
    assert math.isnan(curves.interval(np.array([1.0, np.nan]), 1.0)[0])


# -- codecs


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("jpeg", 1, 60),
        ("webp", 0, 60),
        ("avif", 0, 60),
        ("jpeg2000", 300, 2000),
        ("x265", 48, 30),
        ("av1", 63, 30),
    ],
)
def test_other_codecs_really_run(crop: NDArray[np.uint8], name: str, low: int, high: int) -> None:
    made = VideoCodec if name in VideoCodec.QUALITIES else PictureFormat
    coder = made(name, sizes=(64, 128), qualities=(low, high))  # type: ignore[operator]
    sample = Sample("a", Path("a.png"))
    small, large = coder.settings()
    assert [s.size for s in small] == [64, 64] and [s.quality for s in small] == [low, high]
    coded = [coder.code(sample, crop, setting) for setting in small]
    assert 20 < coded[0].bytes < coded[1].bytes <= coded[1].total_bytes < 3000
    assert all(one.picture.shape == (512, 512, 3) for one in coded)
    quality = [float(psnr256(crop[None], one.picture[None])[0]) for one in coded]
    assert quality[0] < quality[1] and quality[1] > 22
    # More pixels at the same quality: more bytes, a better picture.
    better = coder.code(sample, crop, large[1])
    assert better.bytes > coded[1].bytes or name == "jpeg2000"
    assert psnr256(crop[None], better.picture[None])[0] > quality[1]


def test_units_of_video_streams() -> None:
    slice_, parameters = bytes([19 << 1, 1, 7, 7, 7]), bytes([33 << 1, 1, 9])
    stream = b"\0\0\0\1" + parameters + b"\0\0\0\1" + slice_
    assert hevc_picture_bytes(stream) == 5
    vvc = b"\0\0\0\1" + bytes([0, 15 << 3, 9]) + b"\0\0\1" + bytes([0, 8 << 3, 7, 7])
    assert vvc_picture_bytes(vvc) == 4
    # AV1: temporal delimiter, sequence header of 3 bytes, frame of 200 bytes (two-byte length).
    frame = bytes([6 << 3 | 2, 0xC8, 0x01]) + bytes(200)
    assert av1_picture_bytes(bytes([2 << 3 | 2, 0, 1 << 3 | 2, 3, 1, 2, 3]) + frame) == 203


def test_our_codec_counts_packets(codec: Codec, crop: NDArray[np.uint8]) -> None:
    encoder = SficEncoder(codec)
    sample = Sample("a", Path("a.png"))
    everything, basic = SficCoder(encoder, rates=(3,)), SficCoder(encoder, "basic", rates=(3,))
    face = codec.encode(crop, rate=3)
    setting = everything.settings()[0][0]
    coded = everything.code(sample, crop, setting)
    assert coded.bytes == face.total_bytes
    assert basic.code(sample, crop, setting).bytes == len(face.basic)
    assert coded.picture.shape == (512, 512, 3)
    assert np.array_equal(coded.picture, codec.decode(face, size=512))
    to_bytes = SficCoder(encoder, target_bytes=(1, 150))
    smallest, of_150 = (to_bytes.code(sample, crop, s).bytes for s in to_bytes.settings()[0])
    assert smallest == codec.encode(crop, rate=1).total_bytes  # 1 byte cannot be had
    assert of_150 <= 150
    assert len({everything.key, basic.key}) == 2 and everything.name != basic.name


def test_choosing_codecs(codec: Codec, shared_dir: Path) -> None:
    streams = shared_dir / "data" / "vvc"
    specs = [
        "sfic:rates=1+9",
        "basic",
        "sfic:bytes=100+200",
        f"vvc:streams={streams}",
        "x265:sizes=64,qualities=40+45",
    ]
    coders = choose_coders(specs, lambda: codec)
    assert [c.name for c in coders] == ["sfic", "sfic basic", "sfic to bytes", "vvc", "x265"]
    assert [s.quality for s in coders[0].settings()[0]] == [1, 9]
    assert [s.quality for s in coders[4].settings()[0]] == [45, 40]  # rising bytes


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("h264", "unknown codec"),
        ("sfic:rate=1", "none of"),
        ("sfic:rates=0", "lies in"),
        ("jpeg:sizes=64+x", "whole numbers"),
        ("sfic:layers=top", "unknown layer"),
        ("vvc:streams=/nowhere", "no VVC index"),
    ],
)
def test_wrong_codecs_are_one_clear_error(codec: Codec, spec: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        choose_coders([spec], lambda: codec)
    with pytest.raises(InvalidInput, match="already is a curve"):
        choose_coders(["webp", "webp:sizes=64"], lambda: codec)


def test_vvc_without_an_encoder_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match="vvencapp is not on PATH"):
        VvcEncoder()


def test_vvc_streams(shared_dir: Path) -> None:
    coder = VvcStreams(shared_dir / "data" / "vvc")
    assert len(coder.images) == 72
    everything = [s for group in coder.settings() for s in group]
    setting = next(s for s in everything if (s.size, s.quality) == (64, 42))
    image = sorted(coder.images)[0]
    coded = coder.code(Sample(image, Path(image)), np.zeros((512, 512, 3), np.uint8), setting)
    assert 100 < coded.bytes < coded.total_bytes and coded.picture.shape == (512, 512, 3)
    stream = (shared_dir / "data" / "vvc" / "dev" / f"{image[:-4]}_64_42.266").read_bytes()
    assert vvc_picture_bytes(stream) == coded.bytes
    with pytest.raises(InvalidInput, match="no VVC stream"):
        coder.code(Sample("x", Path("x.png")), np.zeros((512, 512, 3), np.uint8), setting)


# -- datasets


def test_datasets(faces: Path, tmp_path: Path) -> None:
    assert [p.name for p in picture_files([faces, faces / "a.png"])] == ["a.png", "b.png", "c.png"]
    small, side = aligned_samples([faces / "c.png"])[0].read()
    assert small.shape == (512, 512, 3) and side == 256
    (tmp_path / "notes.txt").write_text("no picture")
    for wrong, words in (
        (tmp_path, "no pictures"),
        (tmp_path / "gone", "not exist"),
        (tmp_path / "notes.txt", "neither"),
    ):
        with pytest.raises(InvalidInput, match=words):
            picture_files([wrong])
    Image.new("RGB", (80, 60)).save(tmp_path / "wide.png")
    with pytest.raises(InvalidInput, match=r"wide\.png is 80x60.*--align"):
        aligned_samples([tmp_path / "wide.png"])[0].read()
    with pytest.raises(NoFaceFound):
        detected_samples([tmp_path / "wide.png"])


def test_faces_are_aligned_on_request(crop: NDArray[np.uint8], tmp_path: Path) -> None:
    from sfic.locations import demo_photograph

    (sample,) = detected_samples([demo_photograph()])
    found, side = sample.read()
    assert np.array_equal(found, crop)
    assert 100 < side < 300


# -- metrics


def test_identification_is_among_all_originals() -> None:
    vectors = np.eye(4, dtype=np.float32)
    originals = [{"identity": v} for v in vectors]
    judged = [Judged({}, {"identity": vectors[i]}) for i in (0, 1, 1, 3)]  # the third is mistaken
    everything = SetOfFaces(originals)
    assert everything.value("rank1", judged) == 0.75
    subset = SetOfFaces(originals, [2, 3])
    assert subset.value("rank1", judged) == 0.5
    assert subset.mean_bytes("rank1", np.array([0, 0, 10, 20.0])).mean() == pytest.approx(15, abs=1)
    spread = everything.replicates("rank1", judged)
    assert spread.mean() == pytest.approx(0.75, abs=0.03) and set(spread) <= {0, 0.25, 0.5, 0.75, 1}


def test_landmarks_sum_up_by_their_median() -> None:
    faces = SetOfFaces([{} for _ in range(3)])
    judged = [Judged({"landmarks": x, "identity": x}, {}) for x in (1.0, 2.0, 90.0)]
    assert faces.value("landmarks", judged) == 2
    assert faces.value("identity", judged) == 31


def test_kid_without_each_picture_in_turn() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 12, 8)).astype(np.float32)
    faces = SetOfFaces([{"features": v} for v in a])
    judged = [Judged({}, {"features": v}) for v in b]
    assert faces.value("kid", judged) == pytest.approx(kid(a, b)[0])
    for i, value in enumerate(faces.replicates("kid", judged)):
        assert value == pytest.approx(kid(np.delete(a, i, 0), np.delete(b, i, 0))[0])
    sizes = np.arange(12.0)
    assert faces.mean_bytes("kid", sizes)[3] == pytest.approx(np.delete(sizes, 3).mean())


def test_a_missing_judge_leaves_its_metrics_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SFIC_CACHE", str(tmp_path))
    examiner = Examiner(Judges(), ("identity", "vgg", "kid"))
    assert examiner.missing == {"vgg": "vgg", "kid": "features"}
    assert [m.name for m in examiner.metrics] == ["identity"]
    with pytest.raises(InvalidInput, match="no metric 'beauty'"):
        Examiner(Judges(), ("beauty",))


def test_an_original_is_equal_to_itself(judges: Judges, crop: NDArray[np.uint8]) -> None:
    examiner = Examiner(judges, ("identity", "identity_dlib", "landmarks", "found", "psnr"))
    blurred = scale(scale(crop, 40), 512)
    same, worse = examiner.examine(examiner.reference(crop), np.stack([crop, blurred]))
    assert same.values["identity"] == pytest.approx(1, abs=1e-4)
    assert same.values["landmarks"] == pytest.approx(0, abs=1e-4) and same.values["found"] == 1
    assert same.values["psnr"] > 90
    assert worse.values["identity"] < 0.9 and worse.values["landmarks"] > 1


# -- runs


class Counting:
    """A codec of two settings that counts what it codes, and breaks after so many."""

    name = key = "counting"
    sweeps = False

    def __init__(self, breaks_after: int = 1000) -> None:
        self.coded = 0
        self._breaks_after = breaks_after

    def settings(self) -> list[list[Setting]]:
        return [[Setting(16, 16, "16 px"), Setting(64, 64, "64 px")]]

    def code(self, sample: Sample, crop: NDArray[np.uint8], setting: Setting) -> Coded:
        if self.coded == self._breaks_after:
            raise KeyboardInterrupt
        self.coded += 1
        picture = scale(scale(crop, setting.size), 512)
        return Coded(setting.size, setting.size + 9, picture)


def run(faces: Path, judges: Judges, folder: Path, *coders: Any, **options: Any) -> Evaluation:
    examiner = Examiner(judges, QUICK)
    with Store(folder / "results.sqlite", examiner.fingerprint) as store:
        samples = aligned_samples(picture_files([faces]))
        return evaluate(samples, coders, examiner, store, **options)


def test_a_run_that_was_cut_off_goes_on(faces: Path, judges: Judges, tmp_path: Path) -> None:
    cut = Counting(breaks_after=3)  # one face done, the second not
    with pytest.raises(KeyboardInterrupt):
        run(faces, judges, tmp_path, cut)
    resumed = Counting()
    first = run(faces, judges, tmp_path, resumed)
    assert resumed.coded == 4
    again = Counting()
    second = run(faces, judges, tmp_path, again)
    assert again.coded == 0
    for metric in QUICK:
        one, other = (e.summaries(metric)["counting"] for e in (first, second))
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.replicates, other.replicates)
    summary = first.summaries("identity")["counting"]
    assert summary.bytes.tolist() == [16, 64] and summary.values[0] < summary.values[1] > 0.8
    assert summary.at(15) is None and summary.at(64) == summary.values[1]
    at = summary.replicates_at([15, 64])
    assert np.isnan(at[0]).all() and at[1].min() <= summary.values[1] <= at[1].max()


def test_results_of_other_judges_are_not_taken(faces: Path, judges: Judges, tmp_path: Path) -> None:
    run(faces, judges, tmp_path, Counting())
    examiner = Examiner(judges, ("psnr",))
    coder = Counting()
    with Store(tmp_path / "results.sqlite", examiner.fingerprint) as store:
        evaluate(aligned_samples(picture_files([faces])), [coder], examiner, store)
    assert coder.coded == 6


def test_settings_over_the_limit_are_left_out(faces: Path, judges: Judges, tmp_path: Path) -> None:
    jpeg = PictureFormat("jpeg", sizes=(32, 64), qualities=(1, 10, 95))
    result = run(faces, judges, tmp_path, jpeg, max_bytes=700)
    (curve,) = result.curves
    assert (64, 95) not in [(s.size, s.quality) for s in curve.settings]
    assert 2 <= len(curve.settings) < 6 and curve.sizes.mean(axis=1).max() <= 700
    with pytest.raises(InvalidInput, match="no codec reaches"):
        run(faces, judges, tmp_path, jpeg, max_bytes=10)


def test_a_file_that_is_no_store_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "results.sqlite").write_bytes(b"something else, long enough to be read" * 40)
    with pytest.raises(StorageError, match="not a store"):
        Store(tmp_path / "results.sqlite", "x")


# -- reports


class Balanced(HTMLParser):
    """Checks that every element is closed in order, and collects what a test asks for."""

    VOID = {"meta", "img", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_opens_by_itself(
    faces: Path, judges: Judges, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFIC_CACHE", str(tmp_path / "no judges"))
    coders = [SficCoder(SficEncoder(codec), rates=(1, 9)), Counting()]
    examiner = Examiner(judges, (*QUICK, "vgg"))
    with Store(tmp_path / "results.sqlite", examiner.fingerprint) as store:
        evaluation = evaluate(aligned_samples(picture_files([faces])), coders, examiner, store)
    shown = side_by_side(evaluation, coders, 300, 1)
    page, values, table = write_report(
        evaluation, tmp_path, "counting", shown, "Faces <at> equal bytes", {"versions": "1 & 2"}
    )
    html = page.read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == [] and html.startswith("<!DOCTYPE html>")
    assert len(parser.sources) == 3 and all(s.startswith("data:image/") for s in parser.sources)
    assert "Left out: VGG distance" in parser.text and "BD-rate against counting" in parser.text
    assert "Faces <at> equal bytes" in parser.text and "1 & 2" in parser.text
    for drawing in html.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + drawing.split("</svg>")[0] + "</svg>")
    stated = json.loads(values.read_text())
    ours, theirs = stated["curves"]
    assert [s["setting"] for s in ours["settings"]] == ["rate 1", "rate 9"]
    size = ours["settings"][0]["bytes"]
    assert ours["settings"][0]["bpp_1024"] == pytest.approx(8 * size / 1024**2, rel=1e-2)
    assert ours["settings"][0]["bpp_source"] > 4 * ours["settings"][0]["bpp_1024"]
    assert theirs["at_bytes"]["psnr"]["100"] == theirs["settings"][1]["metrics"]["psnr"]["value"]
    assert stated["left_out"] == {"vgg": "vgg"}
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4 and float(rows[0]["psnr"]) > 5
    assert {r["codec"] for r in rows} == {"sfic", "counting"}
    assert figures(evaluation, None)["anchor"] is None


def test_plots() -> None:
    best = [(50.0, 0.2), (400.0, 0.9)]
    drawing = rate_plot(
        "a < b", [Line("x & y", best, best, [(50, 0.1, 0.3), (400, 0.8, 1.0)]), Line("empty", [])]
    )
    root = ElementTree.fromstring(drawing)
    words = "".join(root.itertext())
    assert "x & y" in words and "a < b" in words and "empty" not in words
    assert sum(e.tag.endswith("polyline") for e in root.iter()) == 1
    ElementTree.fromstring(rate_plot("nothing", []))
    clipped = rate_plot("a", [Line("lost", [(50, 90.0)]), Line("kept", best)], up_to=25)
    assert ">kept<" in clipped and ">lost<" not in clipped
    assert nice_ticks(0.21, 0.88) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(3.0, 3.0)[0] <= 3.0 < nice_ticks(3.0, 3.0)[-1]
    assert byte_ticks(60, 1400) == [100, 200, 500, 1000]


# -- the command


def command(*arguments: object) -> int:
    from sfic.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["eval", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_the_command_writes_a_report(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = (
        "--codec",
        "jpeg:sizes=64,qualities=5+20",
        "--codec",
        "webp:sizes=64,qualities=5",
        "--metric",
        "psnr",
        "--show",
        "1",
        "--workers",
        "2",
    )
    assert command(faces, "--report", out, *options) == 0
    written = capsys.readouterr().out
    assert "report.html" in written and (out / "results.csv").is_file()
    stated = json.loads((out / "results.json").read_text())
    assert stated["anchor"] == "jpeg" and stated["pictures"] == 3
    assert str(faces) not in (out / "results.json").read_text()


def test_replicates_that_are_no_numbers_give_none() -> None:
    nothing, sizes = np.full((2, 3), np.nan), np.array([[50.0] * 3, [400.0] * 3])
    summary = Summary(
        METRICS["kid"], np.array([50.0, 400.0]), np.array([0.2, 0.1]), sizes, nothing
    )
    assert summary.at(400) == 0.1 and np.isnan(summary.replicates_at([400])).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{empty}"], "holds no pictures"),
        (["{empty}/gone"], "does not exist"),
        (["{wide}"], "aligned face is square"),
        (["{broken}"], "broken.png"),
        (["{faces}", "--codec", "h264"], "unknown codec"),
        (["{faces}", "--metric", "beauty"], "no metric"),
        (["{faces}", "--anchor", "vvc", "--codec", "jpeg"], "--anchor vvc"),
    ],
)
def test_a_bad_dataset_is_one_clear_error(
    faces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    for name in ("empty", "wide", "broken"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "wide" / "wide.png")
    (tmp_path / "broken" / "broken.png").write_bytes(b"\x89PNG nothing")
    places = {"faces": faces, **{n: tmp_path / n for n in ("empty", "wide", "broken")}}
    filled = [argument.format(**places) for argument in arguments]
    codec = [] if "--codec" in filled else ["--codec", "jpeg:sizes=64,qualities=5"]
    metric = [] if "--metric" in filled else ["--metric", "psnr"]
    assert command(*filled, *codec, *metric, "--report", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sfic: ") and err.count("\n") == 1, err
    assert words in err
