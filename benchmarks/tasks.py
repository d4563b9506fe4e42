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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console

from benchmarks.report import DOCS, RESULTS, markdown_table, write_markdown, write_result
from sfic.cli.evaluate import show_progress
from sfic.codec import Codec
from sfic.detection import FaceDetector
from sfic.errors import SficError
from sfic.evaluation.curves import best_at, bytes_for, interval
from sfic.evaluation.judges import WORKING_SIZE, Judges, landmark_error
from sfic.evaluation.vvc import VvcStreams, decode, read_streams
from sfic.face_score import pose_of
from training.data import FaceRow, cache_dir, load_rgb, read_index, shared_dir

Rgb = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Statistic = Callable[[npt.NDArray[np.int64]], float]

SETS = ("lfw256", "london1024", "mebeauty256", "celebahq512png", "celebahq512")
CLASSES, SKIN = 19, 1
FOLDS = 10
REPLICATES = 1000
BATCH = 64


@dataclass(frozen=True)
class Basics:
    """Basic layers of some pictures at one rate, and what was read from them (None: an error)."""

    rows: tuple[FaceRow, ...]
    sizes: Floats  # [n]
    results: tuple[Any, ...]

    def of(self, *sets: str) -> npt.NDArray[np.int64]:
        """Indexes of the pictures of some sets."""
        return np.array([i for i, r in enumerate(self.rows) if r.set in sets], np.int64)

    def numbers(self, *path: str) -> Floats:
        """One number a picture, from a field by its path; nan where it is not given."""
        return np.array([number(result, path) for result in self.results], np.float64)

    def arrays(self, name: str) -> list[npt.NDArray[Any] | None]:
        """One array a picture, None where it is not given."""
        found = [getattr(result, name, None) for result in self.results]
        return [None if value is None else np.asarray(value) for value in found]


def number(result: object, path: Sequence[str]) -> float:
    """A field of a result, by attribute names; an estimate stands for its value; nan if absent."""
    value: Any = result
    for name in path:
        value = getattr(value, name, None)
    value = getattr(value, "value", value)
    return float("nan") if value is None else float(value)


@dataclass
class Line:
    """One line of the table."""

    task: str
    data: str
    unit: str
    count: int
    value: float
    low: float
    high: float
    bytes: float
    wanted: str
    met: bool | None
    higher_is_better: bool
    beside: dict[str, float] = field(default_factory=dict)
    by_group: dict[str, dict[str, float]] = field(default_factory=dict)
    vvc: dict[str, Any] = field(default_factory=dict)


class Table:
    """Lines at one rate, made from statistics over pictures, with bootstrap intervals."""

    def __init__(self, basics: Basics, seed: int = 0) -> None:
        self.basics = basics
        self.lines: list[Line] = []
        self.left_out: list[str] = []
        self._rng = np.random.default_rng(seed)

    def add(
        self,
        task: str,
        data: str,
        unit: str,
        units: Sequence[Any] | npt.NDArray[Any],
        statistic: Statistic,
        bytes_of: npt.NDArray[np.int64],
        wanted: tuple[str, float] | None = None,
        higher_is_better: bool = True,
        groups: Mapping[str, npt.NDArray[np.int64]] | None = None,
        beside: Mapping[str, float] | None = None,
    ) -> None:
        """A line: `statistic` of indexes into `units` (pictures or pairs), all and resampled.

        `bytes_of`: the pictures whose basic layers were read. `groups`: indexes into `units` that
        share a label; those under five are left out.
        """
        count = len(units)
        if not count:
            self.left_out.append(f"{task}: no {data} picture gives it")
            return
        everything = np.arange(count)
        value = statistic(everything)
        draws = self._rng.integers(0, count, (REPLICATES, count))
        low, high = interval(np.array([statistic(draw) for draw in draws]), value)
        met = None
        if wanted is not None:
            met = bool(value >= wanted[1] if higher_is_better else value <= wanted[1])
        by_group = {}
        for name, chosen in (groups or {}).items():
            if len(chosen) >= 5:
                of_group = self._rng.integers(0, len(chosen), (REPLICATES, len(chosen)))
                spread = np.array([statistic(chosen[draw]) for draw in of_group])
                edges = interval(spread, statistic(chosen))
                by_group[name] = {
                    "count": len(chosen),
                    "value": statistic(chosen),
                    "low": edges[0],
                    "high": edges[1],
                }
        mean_bytes = float(self.basics.sizes[bytes_of].mean())
        self.lines.append(
            Line(
                task,
                data,
                unit,
                count,
                value,
                low,
                high,
                mean_bytes,
                wanted[0] if wanted else "",
                met,
                higher_is_better,
                dict(beside or {}),
                by_group,
            )
        )


# -- statistics


def verification(scores: Floats, same: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which pairs [P] are told right, each by the threshold that is best on the other nine folds.

    Folds alternate within the same and within the different pairs, so that each holds its share.
    """
    fold = np.empty(len(scores), np.int64)
    for truth in (False, True):
        fold[same == truth] = np.arange((same == truth).sum()) % FOLDS
    right = np.zeros(len(scores), np.bool_)
    for number_ in range(FOLDS):
        inside = fold == number_
        candidates = np.sort(scores[~inside])
        hits = [((scores[~inside] >= t) == same[~inside]).mean() for t in candidates]
        right[inside] = (scores[inside] >= candidates[int(np.argmax(hits))]) == same[inside]
    return right


def auc(scores: Floats, truth: npt.NDArray[np.bool_]) -> float:
    """Area under the receiver's curve: how often a true one scores higher, ties half."""
    above, below = scores[truth], scores[~truth]
    if not len(above) or not len(below):
        return float("nan")
    difference = above[:, None] - below[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def rank1(gallery: Floats, probes: Floats) -> npt.NDArray[np.bool_]:
    """Whether each probe [N, D] is nearest to its own gallery entry [N, D]."""
    return np.asarray((probes @ gallery.T).argmax(axis=1) == np.arange(len(probes)))


def confusion(found: npt.NDArray[Any], truth: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Counts [19, 19] of true (rows) and found classes; `found`: labels [S, S] or scores
    [19, S, S]."""
    labels = found.argmax(axis=0) if found.ndim == 3 else found
    side = labels.shape[0]
    at = np.asarray(cv2.resize(truth, (side, side), interpolation=cv2.INTER_NEAREST), np.int64)
    pairs = CLASSES * at.ravel() + labels.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def iou(counts: npt.NDArray[np.int64]) -> Floats:
    """Intersection over union of each class [19] that occurs; nan for the others."""
    both = counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
    occurs = counts.sum(axis=1) > 0
    return np.where(occurs, np.diag(counts) / np.maximum(both, 1), np.nan)


def by_label(rows: Sequence[FaceRow], *fields: str) -> dict[str, npt.NDArray[np.int64]]:
    """Indexes of rows that share a value of some fields of the index."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        for name in fields:
            if row.fields[name]:
                groups.setdefault(row.fields[name].replace("_", " "), []).append(i)
    return {name: np.array(groups[name]) for name in sorted(groups)}


# -- the networks that stand beside


@dataclass(frozen=True)
class Seen:
    """What networks see in pictures, one row each: unit embeddings, ages, probability of male."""

    embedding: Floats
    age: Floats
    gender: Floats


def faceres_on(pictures: Iterator[Rgb]) -> Seen:
    """The identity teacher on pictures, at 224 px."""
    import torch

    from training.codec_data import to_tensor
    from training.face_targets import teacher_file
    from training.teachers import Faceres

    network = Faceres.load(teacher_file("faceres"))
    parts = []
    with torch.no_grad():
        for picture in pictures:
            parts.append([x.numpy() for x in network(to_tensor(picture[None]))])
    columns = (np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True))
    embedding, age, gender = columns
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return Seen(embedding, age, gender)


def mesh_pose(detector: FaceDetector, picture: Rgb) -> Floats:
    """Yaw, pitch, roll [3] by the face mesh; nan where no face is found."""
    faces = detector.detect(picture, max_faces=1)
    if not faces:
        return np.full(3, np.nan)
    pose = pose_of(faces[0].landmarks)
    return np.array([pose.yaw, pose.pitch, pose.roll])


@dataclass(frozen=True)
class Originals:
    """What is read from original pictures once, for all rates; by path in the index."""

    faceres: dict[str, tuple[Floats, float, float]]
    pose: dict[str, Floats]
    landmarks: dict[str, Floats]

    @classmethod
    def read(cls, rows: Sequence[FaceRow], judges: Judges, tell: Tell) -> Originals:
        """`faceres` stays empty where torch or its weights are missing."""
        weights = cache_dir() / "teachers" / "faceres.safetensors"
        teacher = find_spec("torch") is not None and weights.is_file()
        wanted = [r for r in rows if r.set in ("lfw256", "london1024", "mebeauty256")]
        faceres = {}
        if teacher:
            crops = (load_rgb(r.path, 256) for r in tell(wanted, "faceres on originals"))
            seen = faceres_on(crops)
            faceres = {
                row.fields["path"]: (seen.embedding[i], float(seen.age[i]), float(seen.gender[i]))
                for i, row in enumerate(wanted)
            }
        detector, pose = FaceDetector(), {}
        for row in tell([r for r in rows if r.set != "celebahq512"], "mesh on originals"):
            pose[row.fields["path"]] = mesh_pose(detector, load_rgb(row.path, 256))
        landmarks = {}
        for row in tell([r for r in rows if r.set == "celebahq512png"], "68 points on originals"):
            crop = load_rgb(row.path, WORKING_SIZE)[None]
            landmarks[row.fields["path"]] = judges.landmarks68(crop)[0].astype(np.float64)
        return cls(faceres, pose, landmarks)


Tell = Callable[[Sequence[Any], str], Iterator[Any]]


# -- the tasks


def all_tasks(table: Table, originals: Originals) -> None:
    """Every line of the table at one rate."""
    identity_tasks(table, originals)
    attribute_tasks(table, originals)
    geometry_tasks(table, originals)
    parsing_task(table)


def identity_tasks(table: Table, originals: Originals) -> None:
    """Verification on LFW's pairs, and identification on the London set."""
    basics = table.basics
    embeddings = basics.arrays("embedding")
    by_name = {r.path.name: i for i, r in enumerate(basics.rows) if r.set == "lfw256"}
    pairs = []
    with (shared_dir() / "data" / "faces" / "lfw256_pairs_dev.csv").open(newline="") as file:
        for pair in csv.DictReader(file):
            a, b = by_name.get(pair["a"]), by_name.get(pair["b"])
            if a is None or b is None or embeddings[a] is None or embeddings[b] is None:
                continue
            pairs.append((a, b, pair["same"] == "1"))
    if len(pairs) >= 2 * FOLDS:
        same = np.array([p[2] for p in pairs])
        first, second = (np.array([p[i] for p in pairs]) for i in (0, 1))
        rows = [r.fields["path"] for r in basics.rows]
        scores = np.array([float(embeddings[a] @ embeddings[b]) for a, b, _ in pairs])  # type: ignore[operator]
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
            beside=beside,
        )
    else:
        table.left_out.append("verification: too few pairs")
    people: dict[str, dict[str, int]] = {}
    for i in basics.of("london1024"):
        if embeddings[i] is not None:
            fields = basics.rows[i].fields
            people.setdefault(fields["id"], {})[fields["expression"]] = int(i)
    both = [p for p in people.values() if {"neutral", "smiling"} <= set(p)]
    if both:
        gallery, probes = (np.array([p[kind] for p in both]) for kind in ("neutral", "smiling"))
        found = rank1(
            *(
                np.stack([embeddings[i] for i in part]).astype(np.float64)  # type: ignore[misc]
                for part in (gallery, probes)
            )
        )
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
    """Gender presentation, age, smile."""
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


def geometry_tasks(table: Table, originals: Originals) -> None:
    """68 landmarks against face-api's, and pose against the mesh, both on originals."""
    basics = table.basics
    points = basics.arrays("landmarks")
    chosen = np.array([i for i in basics.of("celebahq512png") if points[i] is not None], np.int64)
    rows = [basics.rows[i] for i in chosen]
    if len(chosen):
        truth = np.stack([originals.landmarks[r.fields["path"]] for r in rows])
        ours = np.stack([points[i] for i in chosen])  # type: ignore[arg-type]
        error = landmark_error(truth.astype(np.float32), ours.astype(np.float32))
    table.add(
        "landmarks, mean error over eye distance",
        "celebahq512png",
        "%",
        rows,
        lambda i: float(error[i].mean()),
        chosen,
        ("4 %", 4.0),
        higher_is_better=False,
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
    )


def parsing_task(table: Table) -> None:
    """Face parsing against CelebA-HQ's masks; left out, by name, where the bundle has none."""
    basics = table.basics
    maps = basics.arrays("parsing")
    chosen = np.array([i for i in basics.of("celebahq512") if maps[i] is not None], np.int64)
    if not len(chosen):
        table.left_out.append("face parsing: this bundle's heads have no parsing output")
        return
    folder = shared_dir() / "data" / "faces" / "celebahq512_masks"
    counts = np.stack(
        [
            confusion(
                np.asarray(maps[i]),
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
    )
    table.add(
        "face parsing, IoU of skin",
        "celebahq512",
        "",
        rows,
        lambda i: float(iou(counts[i].sum(axis=0))[SKIN]),
        chosen,
        ("0.85", 0.85),
    )


# -- VVC


def beside_vvc(
    table: Table, points: Sequence[VvcPoint], originals: Originals
) -> list[dict[str, Any]]:
    """Our tasks on the pictures that VVC was coded on, and networks on VVC's pictures."""
    basics = table.basics
    index = {
        r.path.name: i
        for i, r in enumerate(basics.rows)
        if r.set in ("celebahq512png", "london1024")
    }
    stated = []
    for task, higher, members, ours in vvc_tasks(basics, index, originals):
        if not members:
            continue
        sizes = [p.mean_bytes(members) for p in points]
        values = [p.value(task, members) for p in points]
        budget = float(basics.sizes[[index[m] for m in members]].mean())
        stated.append(
            {
                "task": task,
                "pictures": len(members),
                "bytes": budget,
                "value": ours,
                "vvc_at_equal_bytes": best_at(sizes, values, budget, higher),
                "vvc_bytes_to_match": bytes_for(sizes, values, ours, higher),
                "vvc_fewest_bytes": min(sizes),
                "vvc_most_bytes": max(sizes),
            }
        )
    return stated


def vvc_tasks(
    basics: Basics, index: Mapping[str, int], originals: Originals
) -> Iterator[tuple[str, bool, list[str], float]]:
    """Name, direction, pictures and our value of each task that VVC's pictures allow."""
    points, pose = (
        basics.arrays("landmarks"),
        [basics.numbers("pose", name) for name in ("yaw", "pitch", "roll")],
    )
    age, gender = basics.numbers("age"), basics.numbers("gender")
    path = {name: basics.rows[i].fields["path"] for name, i in index.items()}
    fields = {name: basics.rows[i].fields for name, i in index.items()}

    members = [
        n for n, i in index.items() if path[n] in originals.landmarks and points[i] is not None
    ]
    if members:
        truth = np.stack([originals.landmarks[path[n]] for n in members]).astype(np.float32)
        ours = np.stack([points[index[n]] for n in members]).astype(np.float32)  # type: ignore[arg-type]
        yield "landmarks", False, members, float(landmark_error(truth, ours).mean())
    members = [
        n
        for n, i in index.items()
        if np.isfinite([p[i] for p in pose]).all() and np.isfinite(originals.pose[path[n]]).all()
    ]
    if members:
        away = [
            np.abs(np.array([p[index[n]] for p in pose]) - originals.pose[path[n]]).mean()
            for n in members
        ]
        yield "pose", False, members, float(np.mean(away))
    if originals.faceres:
        members = [
            n
            for n, i in index.items()
            if fields[n]["age"] not in ("", "NA") and np.isfinite(age[i])
        ]
        wrong = [abs(age[index[n]] - float(fields[n]["age"])) for n in members]
        yield "age", False, members, float(np.mean(wrong)) if wrong else float("nan")
        members = [n for n, i in index.items() if fields[n]["gender"] and np.isfinite(gender[i])]
        right = [(gender[index[n]] >= 0.5) == (fields[n]["gender"] == "male") for n in members]
        yield "gender", True, members, float(np.mean(right)) if right else float("nan")


@dataclass(frozen=True)
class VvcPoint:
    """VVC at one setting: bytes and the tasks' values of each picture, by file name."""

    label: str
    sizes: dict[str, int]
    values: dict[str, dict[str, float]]  # task -> file name -> value

    def mean_bytes(self, members: Sequence[str]) -> float:
        """Over some pictures."""
        return float(np.mean([self.sizes[name] for name in members]))

    def value(self, task: str, members: Sequence[str]) -> float:
        """The task's mean; nan where it was not measured on all of them."""
        return float(np.mean([self.values[task].get(name, np.nan) for name in members]))


def vvc_points(
    rows: Sequence[FaceRow], originals: Originals, judges: Judges, max_bytes: int, tell: Tell
) -> list[VvcPoint]:
    """The networks' work on VVC's pictures, at each setting of up to `max_bytes` on average.

    Landmarks by face-api on the original's crop; pose by the mesh, where no face is found an error
    of 45 degrees; age and gender by `faceres`.
    """
    folder = shared_dir() / "data" / "vvc"
    whole = {s.label: s for group in VvcStreams(folder).settings() for s in group}
    streams = {(s.image, s.size, s.qp): s for s in read_streams(folder)}
    chosen = [r for r in rows if r.set in ("celebahq512png", "london1024")]
    names = {s.image for s in streams.values()}
    chosen = [r for r in chosen if r.path.name in names]
    detector = FaceDetector()
    places = {}
    for row in chosen:
        if row.set == "celebahq512png":
            places[row.path.name] = judges.place(load_rgb(row.path, WORKING_SIZE)[None])
    points = []
    for label, setting in tell(sorted(whole.items()), "networks on VVC"):
        sizes: dict[str, int] = {}
        values: dict[str, dict[str, float]] = {
            task: {} for task in ("landmarks", "pose", "age", "gender")
        }
        of_setting = [streams[r.path.name, setting.size, setting.quality] for r in chosen]
        if not of_setting or np.mean([s.bytes_vcl for s in of_setting]) > max_bytes:
            continue
        pictures = {s.image: decode(s.path) for s in of_setting}
        for row, stream in zip(chosen, of_setting, strict=True):
            name, key, picture = row.path.name, row.fields["path"], pictures[row.path.name]
            sizes[name] = stream.bytes_vcl
            if row.set == "celebahq512png":
                found = judges.landmarks68(picture[None], places[name])
                truth = originals.landmarks[key][None].astype(np.float32)
                values["landmarks"][name] = float(landmark_error(truth, found)[0])
            away = np.abs(mesh_pose(detector, picture) - originals.pose[key]).mean()
            values["pose"][name] = float(away) if np.isfinite(away) else 45.0
        labelled = [r for r in chosen if r.set == "london1024"]
        if originals.faceres and labelled:
            seen = faceres_on(iter([pictures[r.path.name] for r in labelled]))
            for row, age, male in zip(labelled, seen.age, seen.gender, strict=True):
                values["age"][row.path.name] = abs(float(age) - float(row.fields["age"]))
                told = (male >= 0.5) == (row.fields["gender"] == "male")
                values["gender"][row.path.name] = float(told)
        points.append(VvcPoint(label, sizes, values))
    return points


# -- running and writing


def read_basics(
    codec: Codec, rows: Sequence[FaceRow], rate: int, effort: int, tell: Tell
) -> Basics:
    """Encode every picture and read its basic layer."""
    packets = [
        codec.encode(load_rgb(row.path, WORKING_SIZE), rate, effort).basic
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
                f"{name} {g['value']:.3f} ({g['low']:.3f} to {g['high']:.3f}; {g['count']})"
                for name, g in x.by_group.items()
            )
            rows.append([x.task, cells, f"{max(values) - min(values):.3f}"])
        parts += [
            "By demographic group (95 %; count):",
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
                ]
            )
        parts += [
            "Networks on VVC's pictures, on the pictures that it was coded on (landmarks: "
            "face-api; pose: mesh; age, gender: faceres), VVC without headers:",
            markdown_table(
                [
                    "task",
                    "pictures",
                    "our bytes",
                    "ours",
                    "VVC at our bytes",
                    "bytes that VVC needs to match",
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
    console = Console()
    codec, judges = Codec.load(threads=args.threads), Judges(args.threads)
    rows = [r for s in SETS for r in read_index("dev", (s,))[: args.limit or None]]
    no_vvc = ["verification (lfw256)", "rank-1 and smile (no smiling picture)", "face parsing"]
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
            vvc = beside_vvc(table, points, originals) if points else []
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
    write_result(name, {"model_bundle": codec.model_bundle, "rates": stated}, args.out or RESULTS)
    intro = (
        f"Read from basic layers alone, effort {args.effort}, model bundle "
        f"`{codec.model_bundle}`; `dev` pictures only. Intervals: bootstrap over pictures or pairs."
    )
    page = write_markdown(
        (args.out or DOCS) / f"{name}.md", "Machine tasks from the basic layer", [intro, *parts]
    )
    console.print(str(page))


if __name__ == "__main__":
    main()
