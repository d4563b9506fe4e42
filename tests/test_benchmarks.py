"""The benchmarks' arithmetic: what they claim of figures must follow from the figures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks import conditions, effort, quality, tasks, tasks_beside, tasks_table
from benchmarks.report import markdown_table, write_markdown, write_result
from sfic.evaluation.codecs import Setting
from sfic.evaluation.dataset import Sample
from sfic.evaluation.metrics import METRICS, Judged
from sfic.evaluation.run import Curve, Evaluation, Face
from sfic.evaluation.store import Result
from training.data import LABELS, FaceRow, read_facial_hair, read_index, shared_dir


def row(name: str, kind: str = "london1024", **fields: str) -> FaceRow:
    empty = {"id": "", "gender": "", "age": "", "group": "", "expression": ""}
    path = f"{kind}/{name}"
    return FaceRow(Path(path), "dev", kind, {**empty, "path": path, **fields})


# -- quality


def evaluation_of(ours: float, theirs: float) -> Evaluation:
    """Six faces through "sfic" and "vvc" at 90 and 900 bytes; identity grows with the bytes."""
    rng = np.random.default_rng(0)
    faces = rng.normal(0, 0.05, 6)  # some are harder, for all codecs alike
    metrics = (METRICS["identity"], METRICS["kid"])
    features = rng.normal(size=(6, 5)).astype(np.float32)

    def curve(name: str, gain: float) -> Curve:
        settings, rows = [], []
        for number, size in enumerate((90, 900)):
            settings.append(Setting(512, number, f"{size}"))
            identity = 0.3 * number + 0.4 + gain + faces + rng.normal(0, 0.005, 6)
            rows.append(
                tuple(
                    Result(size, size, Judged({"identity": float(x)}, {"features": f + 0.1 - gain}))
                    for x, f in zip(identity, features, strict=True)
                )
            )
        return Curve(name, tuple(settings), tuple(rows))

    everyone = tuple(
        Face(Sample(f"{i}.png", Path(f"celebahq512png/{i}.png")), str(i), 512.0) for i in range(6)
    )
    originals = tuple(Judged({}, {"features": f}) for f in features)
    return Evaluation(everyone, metrics, {}, originals, (curve("sfic", ours), curve("vvc", theirs)))


def test_gains_on_vvc_are_paired(tmp_path: Path) -> None:
    stated = quality.compared(evaluation_of(0.1, 0.0).summaries("identity"), ["sfic"])
    at_100 = stated["sfic"]["at"][0]
    low, high = at_100["gain_interval"]
    assert at_100["gain"] == pytest.approx(0.1, abs=0.01)
    assert low < at_100["gain"] < high
    # Faces differ by more than the codecs do; drawn alike, their difference is narrow.
    spread = at_100["interval"][1] - at_100["interval"][0]
    assert high - low < 0.02 < spread
    assert stated["sfic"]["at"][-1]["bytes"] == 900  # the curve ends there
    assert stated["sfic"]["bd_rate"]["percent"] < -40
    written = quality.table("identity", stated, ["sfic"])
    assert "| 100 | **0." in written and "with 900 bytes" in written

    worse = quality.compared(evaluation_of(-0.1, 0.0).summaries("identity"), ["sfic"])
    assert worse["sfic"]["at"][0]["gain"] < 0 and "**" not in quality.table(
        "identity", worse, ["sfic"]
    )
    kid = quality.compared(evaluation_of(0.05, 0.0).summaries("kid"), ["sfic"])
    assert kid["sfic"]["at"][0]["gain"] > 0  # less is better, a gain is above 0 all the same


def test_quality_writes_what_the_docs_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["quality.py", "--out", str(tmp_path)])
    page = quality.write(evaluation_of(0.1, 0.0), ["sfic"], 0, "abc", "a CPU", tmp_path)
    text = page.read_text()
    assert str(tmp_path) not in text and "--out DIR" in text
    for name in ("identity", "kid"):
        assert (tmp_path / f"quality-effort-0-{name}.svg").read_text().startswith("<svg")
        assert f"](quality-effort-0-{name}.svg)" in text
    stated = json.loads((tmp_path / "quality-effort-0.json").read_text())
    assert stated["figures"]["sets"]["celebahq512png"]["pictures"] == 6
    assert "london1024" not in stated["figures"]["sets"]
    assert [s["bytes"] for s in stated["figures"]["settings"]["vvc"]] == [90, 900]


def test_tables() -> None:
    assert markdown_table(["a", "b"], [["1", "2"]]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | 2 |",
    ]


def test_results_name_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x.py", "--out", str(tmp_path), "--rate", "3"])
    assert "--out DIR --rate 3" in write_markdown(tmp_path / "x.md", "X", []).read_text()
    stated = json.loads(write_result("x", {"a": 1}, tmp_path).read_text())
    assert stated["command"] == "python -m benchmarks.x --out DIR --rate 3"


# -- conditions


@pytest.mark.parametrize("name", list(conditions.CONDITIONS))
def test_conditions_change_the_picture_as_named(astronaut: NDArray[np.uint8], name: str) -> None:
    before = astronaut.astype(float)
    after = conditions.CONDITIONS[name](astronaut)
    assert after.dtype == np.uint8 and after.ndim == 3 and after.shape[0] == after.shape[1]
    detail = np.abs(np.diff(after.astype(float), axis=0)).mean()
    usual = np.abs(np.diff(before, axis=0)).mean()
    if name == "clean":
        assert after is astronaut
    elif name.startswith("face of"):
        pixels = int(name.split()[2])
        assert after.shape[0] == pytest.approx(pixels / conditions.FACE_IN_CROP, abs=1)
    elif name.endswith("the light"):
        parts = {"half": 2, "a quarter of": 4, "an eighth of": 8, "a sixteenth of": 16}
        share = 1 / parts[name.removesuffix(" the light")]
        assert after.mean() / before.mean() == pytest.approx(share ** (1 / 2.2), abs=0.03)
    elif name == "noise":
        assert detail > 1.5 * usual
    elif name == "blur":
        assert detail < 0.7 * usual
    else:
        assert 1 < np.abs(after - before).mean() < 12


def test_only_what_is_surely_worse_is_flagged() -> None:
    rng = np.random.default_rng(0)

    def line(what: str, mean: float, count: int, spread: float = 0.05) -> conditions.Row:
        values = rng.normal(0, spread, count)
        values += mean - values.mean()
        ones = np.ones(count)
        return conditions.Row("s", what, values, 200 * ones, ones, 0 * ones)

    stated = conditions.figures(
        [
            line("clean", 0.6, 60),
            line("much worse", 0.5, 60),
            line("a little worse", 0.57, 60),
            line("wide", 0.52, 8, 0.2),
            line("one picture", 0.3, 1),
        ]
    )
    assert [r["what"] for r in stated if r["flag"]] == ["much worse"]
    assert stated[1]["low"] < 0.5 < stated[1]["high"] < 0.54
    assert stated[1]["of_clean"] == pytest.approx(0.5 / 0.6, abs=1e-3)
    assert conditions.table(stated).count("more than 10 % below") == 1


def test_labels_of_demographic_groups() -> None:
    labels = conditions.demographic(row("a", group="west_asian", gender="male"), np.zeros(1))  # type: ignore[arg-type]
    assert labels == ["demographic group: west asian", "gender: male"]
    assert conditions.demographic(row("b"), np.zeros(1)) == []  # type: ignore[arg-type]


# -- tasks


def test_verification_does_not_choose_its_threshold_on_what_it_tests() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0
    apart = np.where(same, 0.7, 0.3) + rng.normal(0, 0.05, 400)
    assert tasks_table.verification(apart, same).mean() > 0.99
    # Scores that say nothing: about half right, not more by having looked.
    blind = tasks_table.verification(rng.normal(size=400), same)
    assert blind.mean() == pytest.approx(0.5, abs=0.08)


def test_area_under_the_curve() -> None:
    truth = np.array([False, False, True, True])
    assert tasks_table.auc(np.array([0.1, 0.4, 0.35, 0.8]), truth) == 0.75
    assert tasks_table.auc(np.ones(4), truth) == 0.5
    assert np.isnan(tasks_table.auc(np.ones(2), truth[:2]))


def test_parsing_is_counted_over_all_pictures() -> None:
    truth = np.zeros((8, 8), np.uint8)
    truth[:4] = tasks_table.SKIN
    found = np.zeros((4, 4), np.int64)
    found[:1] = tasks_table.SKIN  # half of the skin
    counts = tasks_table.confusion(found, truth)
    shares = tasks_table.iou(counts)
    assert shares[tasks_table.SKIN] == 0.5 and shares[0] == pytest.approx(8 / 12)
    assert np.isnan(shares[5])
    scores = np.eye(tasks_table.CLASSES)[found].transpose(2, 0, 1)  # [19, 4, 4]
    np.testing.assert_array_equal(tasks_table.confusion(scores, truth), counts)


def test_fields_that_a_bundle_lacks_are_no_numbers() -> None:
    result = SimpleNamespace(
        age=SimpleNamespace(value=31.0),
        smile=0.25,
        pose=SimpleNamespace(yaw=SimpleNamespace(value=3.0)),
        gender=None,
    )
    assert tasks_table.number(result, ("age",)) == 31
    assert tasks_table.number(result, ("smile",)) == 0.25
    assert tasks_table.number(result, ("pose", "yaw")) == 3
    for path in (("glasses",), ("pose", "roll"), ("gender",)):
        assert np.isnan(tasks_table.number(result, path))
    assert np.isnan(tasks_table.number(None, ("age",)))


def london(shared: dict[str, Any] | None = None) -> tasks_table.Basics:
    """Six people, neutral and smiling, as a bundle without parsing would read them."""
    rows, results = [], []
    for person in range(6):
        for expression in ("neutral", "smiling"):
            rows.append(
                row(
                    f"{person}-{expression}",
                    id=str(person),
                    expression=expression,
                    gender="male" if person % 2 else "female",
                    age=str(20 + person),
                    group="white",
                )
            )
            embedding = np.eye(6)[person]
            results.append(
                SimpleNamespace(
                    embedding=embedding,
                    age=SimpleNamespace(value=22.0 + person),
                    gender=SimpleNamespace(value=0.9 if person in (1, 3) else 0.1),
                    smile=SimpleNamespace(value=0.8 if expression == "smiling" else 0.1),
                    **(shared or {}),
                )
            )
    return tasks_table.Basics(tuple(rows), np.full(len(rows), 90.0), tuple(results))


def test_tasks_of_a_bundle(tmp_path: Path, shared_dir: Path) -> None:
    table = tasks_table.Table(london())
    originals = tasks_beside.Originals({}, {}, {})
    tasks.all_tasks(table, originals)
    lines = {line.task: line for line in table.lines}
    assert lines["rank-1, neutral to smiling"].value == 1.0
    assert lines["gender, accuracy"].value == pytest.approx(10 / 12)  # the fifth man is not told
    assert lines["gender, accuracy"].met is False
    assert lines["gender, accuracy"].by_group["male"]["value"] == pytest.approx(4 / 6)
    assert lines["age, mean error"].value == 2.0 and lines["age, mean error"].met is None
    assert lines["smile, AUC"].value == 1.0 and lines["smile, AUC"].met is True
    assert all(line.bytes == 90 for line in table.lines)
    left_out = " ".join(table.left_out)
    for word in ("verification", "landmarks", "head pose", "face parsing"):
        assert word in left_out
    text = "\n".join(tasks.markdown(3, table, [], []))
    assert "| gender, accuracy |" in text and "Left out: " in text and "white" in text


def test_the_teacher_sets_the_goal_where_it_is_there(shared_dir: Path) -> None:
    basics = london()
    theirs = {
        r.fields["path"]: (np.eye(6)[int(r.fields["id"])], float(r.fields["age"]) + 1, 0.5)
        for r in basics.rows
    }
    table = tasks_table.Table(basics)
    tasks.all_tasks(table, tasks_beside.Originals(theirs, {}, {}))
    (age,) = (line for line in table.lines if line.task == "age, mean error")
    assert age.beside == {"faceres on originals": 1.0}
    assert age.wanted == "faceres + 1.5" and age.met is True  # 2 years, 2.5 allowed


def test_bytes_that_vvc_needs() -> None:
    basics = london()
    named = {r.path.name: float(abs(int(r.fields["id"]) - 2)) for r in basics.rows}
    theirs = {r.fields["path"]: (np.eye(6)[0], 0.0, 0.0) for r in basics.rows}
    points = [
        tasks_beside.VvcPoint(
            str(size),
            dict.fromkeys(named, size),
            {"age": dict.fromkeys(named, error), "gender": dict.fromkeys(named, 1.0)},
        )
        for size, error in ((50, 8.0), (200, 4.0), (800, 1.0))
    ]
    pose = {r.fields["path"]: np.full(3, np.nan) for r in basics.rows}
    stated = {
        v["task"]: v
        for v in tasks_beside.beside_vvc(basics, points, tasks_beside.Originals(theirs, pose, {}))
    }
    assert set(stated) == {"age", "gender"}
    assert stated["age"]["value"] == 2 and 200 < stated["age"]["vvc_bytes_to_match"] < 800
    assert stated["age"]["vvc_at_equal_bytes"] == pytest.approx(8 - 4 * np.log(1.8) / np.log(4))
    assert stated["gender"]["vvc_bytes_to_match"] == 50


def test_verification_reads_the_pairs_of_the_data(shared_dir: Path) -> None:
    with (shared_dir / "data" / "faces" / "lfw256_pairs_dev.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    used = [p for same in "10" for p in [q for q in pairs if q["same"] == same][:40]]
    names = sorted({p[side] for p in used for side in "ab"})
    people = {name.rsplit("_", 1)[0] for name in names}
    axes = dict(zip(sorted(people), np.eye(len(people)), strict=True))
    rows = [row(name, "lfw256") for name in names]
    results = [SimpleNamespace(embedding=axes[name.rsplit("_", 1)[0]]) for name in names]
    table = tasks_table.Table(
        tasks_table.Basics(tuple(rows), np.full(len(rows), 80.0), tuple(results))
    )
    theirs = {r.fields["path"]: (np.ones(4), 30.0, 0.5) for r in rows}
    tasks.identity_tasks(table, tasks_beside.Originals(theirs, {}, {}))
    (line,) = table.lines
    assert line.count >= 80 and line.value == 1.0 and line.met is True and line.bytes == 80
    # A network to which all faces are alike is right on half of the pairs.
    assert 0.3 < line.beside["faceres on originals"] < 0.7


def test_parsing_is_judged_by_the_masks_of_the_data(shared_dir: Path) -> None:
    mask = next((shared_dir / "data" / "faces" / "celebahq512_masks").glob("*.png"))
    truth = np.asarray(Image.open(mask), np.uint8)
    told = truth[4::8, 4::8]  # [64, 64]
    basics = tasks_table.Basics(
        (row(mask.stem + ".jpg", "celebahq512"),), np.array([99.0]),
        (SimpleNamespace(parsing=told),),
    )
    table = tasks_table.Table(basics)
    tasks.parsing_task(table, tasks_beside.Originals({}, {}, {}))
    classes, skin = table.lines
    assert classes.value > 0.85 and skin.value > 0.95 and classes.met and skin.met
    blank = tasks_table.Table(replace(basics, results=(SimpleNamespace(parsing=0 * told),)))
    tasks.parsing_task(blank, tasks_beside.Originals({}, {}, {}))
    assert blank.lines[0].value < 0.2 and blank.lines[0].met is False


# -- effort


def test_an_effort_is_held_against_effort_0_at_its_own_bytes() -> None:
    """Fewer bytes for the same picture are a gain; the same point on the same curve is none."""
    evaluation = evaluation_of(0.1, 0.0)
    summaries = evaluation.summaries("identity")
    better, base = summaries["sfic"], summaries["vvc"]
    rows = effort.gains(base, better)
    assert [row["bytes"] for row in rows] == [90, 900]
    for row in rows:
        low, high = row["interval"]
        assert low < row["gain"] < high
        assert row["gain"] == pytest.approx(0.1, abs=0.01)
    half = replace(better, bytes=better.bytes * [1.0, 1 / 3], values=base.values)
    assert effort.gains(base, half)[1]["gain"] == pytest.approx(0.3 * np.log(3) / np.log(10), 0.05)
    assert effort.gains(base, base)[0]["gain"] == 0
    written = effort.table("identity", {"1": dict(zip("19", rows, strict=True))}, [1, 9])
    assert "| 1 | 0.5" in written and "with 90 bytes (**+0." in written


# -- speed


def test_a_goal_is_met_missed_or_not_measured() -> None:
    from benchmarks.__main__ import Row

    ratio = Row("a path", "ms", 30.0, "theirs", 60.0, 0.75)
    assert ratio.cells() == ["a path", "30 ms", "theirs: 60 ms", "0.5", "<= 0.75", "yes"]
    assert replace(ratio, theirs=30.0).cells()[-1] == "no"
    assert replace(ratio, theirs=None).cells()[-1] == "not measured"
    assert Row("a share", "", 0.5, "", None, 0.6, least=True).cells()[-1] == "no"


def test_a_figure_counts_as_changed_from_a_tenth() -> None:
    from benchmarks.__main__ import changes

    before = {"ms": {"a": 10.0, "b": 10.0}, "text": "x"}
    after = {"ms": {"a": 12.0, "b": 10.5, "new": 1.0}, "text": "y"}
    assert changes(before, after) == ["ms: a: 10.0 -> 12.0 (+20%)"]


def test_generator_work_is_what_the_prior_takes() -> None:
    from benchmarks.speed import generator_work

    products, moved = generator_work(1024)
    assert products == pytest.approx(7.3e9, rel=0.02)  # counted on the packaged network
    assert generator_work(256)[0] < products / 2 and moved > generator_work(512)[1]


def test_facial_hair_labels() -> None:
    """One label a picture, of the three there are, and of no picture that does not exist."""
    labels = read_facial_hair()
    assert set(labels.values()) == {0.0, 0.5, 1.0}
    with LABELS.open() as file:
        assert sum(1 for _ in file) == len(labels) + 1
    if not (shared_dir() / "data" / "faces" / "index.csv").is_file():
        pytest.skip("the face sets are not here")
    assert set(labels) <= {row.fields["path"] for row in read_index()}
