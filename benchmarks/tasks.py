"""Machine tasks from the basic layer alone, beside the same tasks on pictures.

    python -m benchmarks.tasks [--rates 3 6 9] [--effort N] [--limit N] [--no-vvc]

Every result is read through `Codec.analyze_batch` from basic packets; a task whose field the bundle
does not give is left out and named. Beside it stand a network on the original pictures (`faceres`,
the identity teacher: needs torch and `python -m training.convert_teachers`) and networks on VVC's
decoded pictures where there are bitstreams, with the bytes that VVC needs to match. Labels are the
index's; only `dev` rows are read. Needs the face sets (`SFIC_SHARED`).
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console

from benchmarks.report import DOCS, RESULTS, markdown_table, write_markdown, write_result
from benchmarks.tasks_beside import Originals, Tell, beside_vvc, vvc_points
from benchmarks.tasks_table import (
    FOLDS,
    SKIN,
    Basics,
    Table,
    auc,
    by_label,
    confusion,
    iou,
    rank1,
    verification,
)
from sfic.cli.evaluate import show_progress
from sfic.codec import Codec
from sfic.errors import SficError
from sfic.evaluation.judges import WORKING_SIZE, Judges, landmark_error
from training.data import FaceRow, load_rgb, read_facial_hair, read_index, shared_dir

Floats = npt.NDArray[np.float64]

SETS = ("lfw256", "london1024", "mebeauty256", "celebahq512png", "celebahq512")
BATCH = 64


def all_tasks(table: Table, originals: Originals) -> None:
    """Every line of the table at one rate."""
    identity_tasks(table, originals)
    attribute_tasks(table, originals)
    geometry_tasks(table, originals)
    parsing_task(table, originals)


def by_gender(rows: Sequence[FaceRow], originals: Originals) -> dict[str, npt.NDArray[np.int64]]:
    """Indexes of rows by gender presentation, where the sets have no labels read by `faceres`."""
    told = np.array([originals.gender(row) for row in rows])
    return {name: np.flatnonzero(told == name) for name in ("female", "male")}


def identity_tasks(table: Table, originals: Originals) -> None:
    """Verification on LFW's pairs, and identification on the London set."""
    basics = table.basics
    embeddings = basics.arrays("embedding")
    by_name = {r.path.name: i for i, r in enumerate(basics.rows) if r.set == "lfw256"}
    pairs = []
    with (shared_dir() / "data" / "faces" / "lfw256_pairs_dev.csv").open(newline="") as file:
        for pair in csv.DictReader(file):
            a, b = by_name.get(pair["a"]), by_name.get(pair["b"])
            if a is not None and b is not None and a in embeddings and b in embeddings:
                pairs.append((a, b, pair["same"] == "1"))
    if len(pairs) >= 2 * FOLDS:
        same = np.array([p[2] for p in pairs])
        first, second = (np.array([p[i] for p in pairs]) for i in (0, 1))
        rows = [r.fields["path"] for r in basics.rows]
        scores = np.array([float(embeddings[a] @ embeddings[b]) for a, b, _ in pairs])
        right = verification(scores, same)
        beside, wanted = {}, None
        if originals.faceres:
            vectors = [
                (originals.faceres[rows[a]][0], originals.faceres[rows[b]][0]) for a, b, _ in pairs
            ]
            theirs = verification(np.array([float(x @ y) for x, y in vectors]), same)
            beside["faceres on originals"] = float(theirs.mean())
            wanted = ("within 0.03 of faceres", float(theirs.mean()) - 0.03)
        table.add(
            "verification, 10-fold accuracy",
            "lfw256 pairs",
            "",
            pairs,
            lambda i: float(right[i].mean()),
            np.unique(np.concatenate((first, second))),
            wanted,
            groups=by_gender([basics.rows[i] for i in first], originals),
            beside=beside,
        )
    else:
        table.left_out.append("verification: too few pairs")
    people: dict[str, dict[str, int]] = {}
    for i in basics.of("london1024"):
        if int(i) in embeddings:
            fields = basics.rows[i].fields
            people.setdefault(fields["id"], {})[fields["expression"]] = int(i)
    both = [p for p in people.values() if {"neutral", "smiling"} <= set(p)]
    if both:
        gallery, probes = (np.array([p[kind] for p in both]) for kind in ("neutral", "smiling"))
        found = rank1(*(np.stack([embeddings[i] for i in part]) for part in (gallery, probes)))
        beside = {}
        if originals.faceres:
            paths = [r.fields["path"] for r in basics.rows]
            theirs = rank1(
                *(
                    np.stack([originals.faceres[paths[i]][0] for i in part])
                    for part in (gallery, probes)
                )
            )
            beside["faceres on originals"] = float(theirs.mean())
        table.add(
            "rank-1, neutral to smiling",
            "london1024",
            "",
            both,
            lambda i: float(found[i].mean()),
            np.concatenate((gallery, probes)),
            ("0.95", 0.95),
            groups=by_label([basics.rows[i] for i in probes], "group", "gender"),
            beside=beside,
        )
    else:
        table.left_out.append("rank-1: no person with both expressions")


def attribute_tasks(table: Table, originals: Originals) -> None:
    """Gender presentation, age, smile, facial hair."""
    basics = table.basics

    def known(sets: Sequence[str], what: str, values: Floats) -> npt.NDArray[np.int64]:
        labelled = [i for i in basics.of(*sets) if basics.rows[i].fields[what] not in ("", "NA")]
        return np.array([i for i in labelled if np.isfinite(values[i])], np.int64)

    def teacher(chosen: npt.NDArray[np.int64], column: int) -> Floats | None:
        if not originals.faceres:
            return None
        paths = [basics.rows[i].fields["path"] for i in chosen]
        return np.array([originals.faceres[path][column] for path in paths], np.float64)

    gender = basics.numbers("gender")
    chosen = known(("london1024", "mebeauty256"), "gender", gender)
    rows = [basics.rows[i] for i in chosen]
    male = np.array([r.fields["gender"] == "male" for r in rows])
    right = (gender[chosen] >= 0.5) == male
    theirs = teacher(chosen, 2)
    beside = (
        {} if theirs is None else {"faceres on originals": float(((theirs >= 0.5) == male).mean())}
    )
    table.add(
        "gender, accuracy",
        "london1024, mebeauty256",
        "",
        rows,
        lambda i: float(right[i].mean()),
        chosen,
        ("0.97", 0.97),
        groups=by_label(rows, "group", "gender"),
        beside=beside,
    )

    age = basics.numbers("age")
    chosen = known(("london1024",), "age", age)
    rows = [basics.rows[i] for i in chosen]
    truth = np.array([float(r.fields["age"]) for r in rows])
    error = np.abs(age[chosen] - truth)
    theirs = teacher(chosen, 1)
    beside, wanted = {}, None
    if theirs is not None and len(truth):
        their_error = float(np.abs(theirs - truth).mean())
        beside, wanted = {"faceres on originals": their_error}, ("faceres + 1.5", their_error + 1.5)
    table.add(
        "age, mean error",
        "london1024",
        "years",
        rows,
        lambda i: float(error[i].mean()),
        chosen,
        wanted,
        higher_is_better=False,
        groups=by_label(rows, "group", "gender"),
        beside=beside,
    )

    smile = basics.numbers("smile")
    chosen = known(("london1024",), "expression", smile)
    rows = [basics.rows[i] for i in chosen]
    smiling = np.array([r.fields["expression"] == "smiling" for r in rows], np.bool_)
    scores = smile[chosen]
    table.add(
        "smile, AUC",
        "london1024",
        "",
        rows,
        lambda i: auc(scores[i], smiling[i]),
        chosen,
        ("0.93", 0.93),
        groups=by_label(rows, "group", "gender"),
    )

    # Men alone: that women have none would be told by gender.
    hair, labels = basics.numbers("facial_hair"), read_facial_hair()
    seen = [labels.get(row.fields["path"], 0.5) for row in basics.rows]
    chosen = np.array(
        [i for i in range(len(seen)) if seen[i] != 0.5 and np.isfinite(hair[i])], np.int64
    )
    rows = [basics.rows[i] for i in chosen]
    bearded = np.array([seen[i] == 1 for i in chosen], np.bool_)
    found, sets = hair[chosen], np.array([row.set for row in rows])

    def within_sets(i: npt.NDArray[np.int64]) -> float:
        """Of the pairs within a set: how many men have a beard differs from set to set."""
        groups = [i[sets[i] == name] for name in np.unique(sets[i])]
        pairs = [int(bearded[g].sum() * (~bearded[g]).sum()) for g in groups]
        right = [n * auc(found[g], bearded[g]) for n, g in zip(pairs, groups, strict=True) if n]
        return sum(right) / sum(pairs) if sum(pairs) else float("nan")

    table.add(
        "facial hair of men, AUC within sets",
        "all sets",
        "",
        rows,
        within_sets,
        chosen,
        groups=by_label(rows, "set", "group"),
    )


def geometry_tasks(table: Table, originals: Originals) -> None:
    """68 landmarks against face-api's and the mesh's, pose against the mesh, all on originals."""
    basics = table.basics
    points = basics.arrays("landmarks")
    chosen = np.array([i for i in basics.of("celebahq512png") if i in points], np.int64)
    rows = [basics.rows[i] for i in chosen]
    errors: dict[str, npt.NDArray[np.float32]] = {}
    beside = {}
    if len(chosen):
        ours = np.stack([points[i] for i in chosen]).astype(np.float32)
        blank = np.full((68, 2), np.nan)
        judge, mesh, mirrored = (
            np.stack([told.get(r.fields["path"], blank) for r in rows]).astype(np.float32)
            for told in (originals.landmarks, originals.mesh, originals.mirrored)
        )
        errors = {"judge": landmark_error(judge, ours), "mesh": landmark_error(mesh, ours)}
        beside = {
            "the mesh itself, on originals": float(landmark_error(judge, mesh).mean()),
            "the judge on mirrored originals": float(landmark_error(judge, mirrored).mean()),
        }
    for name, task, wanted in (
        ("judge", "landmarks, mean error over eye distance", ("4 %", 4.0)),
        ("mesh", "landmarks, the same against the mesh", None),
    ):
        error = errors.get(name, np.empty(0, np.float32))
        table.add(
            task,
            "celebahq512png",
            "%",
            rows,
            lambda i, error=error: float(error[i].mean()),
            chosen,
            wanted,
            higher_is_better=False,
            groups=by_gender(rows, originals),
            beside=beside if name == "judge" else None,
        )
    angles = np.stack([basics.numbers("pose", name) for name in ("yaw", "pitch", "roll")], axis=1)
    chosen = np.array(
        [
            i
            for i in basics.of("lfw256")
            if np.isfinite(angles[i]).all()
            and np.isfinite(originals.pose[basics.rows[i].fields["path"]]).all()
        ],
        np.int64,
    )
    rows = [basics.rows[i] for i in chosen]
    if len(chosen):
        mesh = np.stack([originals.pose[r.fields["path"]] for r in rows])
        away = np.abs(angles[chosen] - mesh).mean(axis=1)
    table.add(
        "head pose, mean error against the mesh",
        "lfw256",
        "degrees",
        rows,
        lambda i: float(away[i].mean()),
        chosen,
        ("3 degrees", 3.0),
        higher_is_better=False,
        groups=by_gender(rows, originals),
    )


def parsing_task(table: Table, originals: Originals) -> None:
    """Face parsing against CelebA-HQ's masks; left out, by name, where the bundle has none."""
    basics = table.basics
    maps = basics.arrays("parsing")
    chosen = np.array([i for i in basics.of("celebahq512") if i in maps], np.int64)
    if not len(chosen):
        table.left_out.append("face parsing: this bundle's heads have no parsing output")
        return
    folder = shared_dir() / "data" / "faces" / "celebahq512_masks"
    counts = np.stack(
        [
            confusion(
                maps[i],
                np.asarray(Image.open(folder / f"{basics.rows[i].path.stem}.png"), np.uint8),
            )
            for i in chosen
        ]
    )
    rows = [basics.rows[i] for i in chosen]
    table.add(
        "face parsing, mean IoU of 19 classes",
        "celebahq512",
        "",
        rows,
        lambda i: float(np.nanmean(iou(counts[i].sum(axis=0)))),
        chosen,
        ("0.45", 0.45),
        groups=by_gender(rows, originals),
    )
    table.add(
        "face parsing, IoU of skin",
        "celebahq512",
        "",
        rows,
        lambda i: float(iou(counts[i].sum(axis=0))[SKIN]),
        chosen,
        ("0.85", 0.85),
        groups=by_gender(rows, originals),
    )


def read_basics(
    codec: Codec, rows: Sequence[FaceRow], rate: int, effort: int, tell: Tell
) -> Basics:
    """Encode every picture and read its basic layer."""
    packets = [
        codec.encode(load_rgb(row.path, WORKING_SIZE), rate, effort, layers="basic").basic
        for row in tell(rows, f"rate {rate}: encoding")
    ]
    results: list[Any] = []
    for start in range(0, len(packets), BATCH):
        for result in codec.analyze_batch(packets[start : start + BATCH]):
            results.append(None if isinstance(result, SficError) else result)
    return Basics(tuple(rows), np.array([len(p) for p in packets], np.float64), tuple(results))


def plain(value: Any) -> Any:
    """Numbers rounded, nan as None, through dictionaries."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    return value


def edges(group: Mapping[str, float]) -> str:
    """The interval in words; there is none where too few resamples have the statistic."""
    if not np.isfinite(group["low"]):
        return "no interval"
    return f"{group['low']:.3f} to {group['high']:.3f}"


def markdown(
    rate: int, table: Table, vvc: Sequence[dict[str, Any]], no_vvc: Sequence[str]
) -> list[str]:
    """The tables of one rate."""
    lines = []
    for x in table.lines:
        beside = ", ".join(f"{name} {value:.3f}" for name, value in x.beside.items()) or "–"
        met = {True: "yes", False: "**no**", None: "–"}[x.met]
        lines.append(
            [
                x.task,
                x.data,
                str(x.count),
                f"{x.bytes:.0f}",
                f"{x.value:.3f} ({x.low:.3f} to {x.high:.3f}) {x.unit}".strip(),
                beside,
                x.wanted,
                met,
            ]
        )
    heads = ["task", "data", "count", "basic bytes", "value (95 %)", "beside", "wanted", "met"]
    parts = [f"## Rate {rate}", markdown_table(heads, lines)]
    if table.left_out:
        parts.append("Left out: " + "; ".join(table.left_out) + ".")
    grouped = [x for x in table.lines if x.by_group]
    if grouped:
        rows = []
        for x in grouped:
            values = [g["value"] for g in x.by_group.values()]
            cells = "; ".join(
                f"{name} {g['value']:.3f} ({edges(g)}; {g['count']})"
                for name, g in x.by_group.items()
            )
            rows.append([x.task, cells, f"{max(values) - min(values):.3f}"])
        parts += [
            "By demographic group (95 %; count). LFW and CelebA-HQ have no labels: there gender "
            "presentation is what faceres reads from the original:",
            markdown_table(["task", "demographic groups", "gap"], rows),
        ]
    if vvc:
        rows = []
        for v in vvc:
            equal, match = v["vvc_at_equal_bytes"], v["vvc_bytes_to_match"]
            rows.append(
                [
                    v["task"],
                    str(v["pictures"]),
                    f"{v['bytes']:.0f}",
                    f"{v['value']:.3f}",
                    f"no point: fewest {v['vvc_fewest_bytes']:.0f}"
                    if equal is None
                    else f"{equal:.3f}",
                    f"over {v['vvc_most_bytes']:.0f}" if match is None else f"{match:.0f}",
                    f"over {v['vvc_most_bytes'] / v['bytes']:.1f}"
                    if match is None
                    else f"{match / v['bytes']:.1f}",
                ]
            )
        parts += [
            "Networks on VVC's pictures, on the pictures that it was coded on (landmarks: "
            "face-api against itself on the original; mesh: the face mesh against itself; pose: "
            "mesh; age, gender: faceres), VVC without headers:",
            markdown_table(
                [
                    "task",
                    "pictures",
                    "our bytes",
                    "ours",
                    "VVC at our bytes",
                    "bytes that VVC needs to match",
                    "times ours",
                ],
                rows,
            ),
            "No VVC bitstreams: " + "; ".join(no_vvc) + ".",
        ]
    return parts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=[3, 6, 9])
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="so many faces of each set")
    parser.add_argument("--no-vvc", action="store_true", help="leave VVC's pictures out")
    parser.add_argument("--max-bytes", type=int, default=1700, help="of VVC's settings")
    parser.add_argument("--out", type=Path, help="folder for everything, in place of the usual")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    console, begin = Console(), time.monotonic()
    codec, judges = Codec.load(threads=args.threads), Judges(args.threads)
    rows = [r for s in SETS for r in read_index("dev", (s,))[: args.limit or None]]
    no_vvc = [
        "verification (lfw256)", "rank-1 and smile (no smiling picture)",
        "facial hair (no other network)", "face parsing",
    ]  # fmt: skip
    parts, stated = [], []
    with show_progress(console) as progress:

        def tell(things: Sequence[Any], what: str) -> Iterator[Any]:
            for done, thing in enumerate(things):
                progress(what, done, len(things))
                yield thing

        originals = Originals.read(rows, judges, tell)
        points = []
        if not args.no_vvc:
            points = vvc_points(rows, originals, judges, args.max_bytes, tell)
        for rate in args.rates:
            table = Table(read_basics(codec, rows, rate, args.effort, tell))
            all_tasks(table, originals)
            vvc = beside_vvc(table.basics, points, originals) if points else []
            parts += markdown(rate, table, vvc, no_vvc)
            stated.append(
                {
                    "rate": rate,
                    "left_out": table.left_out,
                    "tasks": [plain(vars(x)) for x in table.lines],
                    "beside_vvc": [plain(v) for v in vvc],
                }
            )
    if not originals.faceres:
        parts.insert(0, "faceres is not there: `python -m training.convert_teachers`.")
    name = f"tasks-effort-{args.effort}"
    minutes = round((time.monotonic() - begin) / 60, 1)
    figures = {"model_bundle": codec.model_bundle, "minutes": minutes, "rates": stated}
    write_result(name, figures, args.out or RESULTS)
    intro = (
        f"Read from basic layers alone, effort {args.effort}, model bundle "
        f"`{codec.model_bundle}`; `dev` pictures only. Intervals: bootstrap over pictures or pairs."
        f" All of it took {minutes:.0f} minutes with {args.threads} threads."
    )
    page = write_markdown(
        (args.out or DOCS) / f"{name}.md", "Machine tasks from the basic layer", [intro, *parts]
    )
    console.print(str(page))


if __name__ == "__main__":
    main()
