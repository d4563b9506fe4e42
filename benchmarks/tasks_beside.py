"""What stands beside machine tasks from basic layers: networks on originals and on VVC's pictures.

Belongs here: running them on the face sets. Not here: reading basic layers (`benchmarks.tasks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.tasks_table import Basics
from sfic.detection import FaceDetector
from sfic.evaluation.curves import best_at, bytes_for
from sfic.evaluation.judges import WORKING_SIZE, Judges, landmark_error
from sfic.evaluation.vvc import VvcStreams, decode, read_streams
from sfic.face_score import pose_of
from training.data import FaceRow, cache_dir, load_rgb, shared_dir
from training.mesh_points import FLIP_68, points_68

Rgb = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Tell = Callable[[Sequence[Any], str], Iterator[Any]]


NO_FACE = {"pose": 45.0, "mesh": 50.0}  # degrees; % of the distance between the eyes


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


def mesh_of(detector: FaceDetector, picture: Rgb) -> tuple[Floats, Floats]:
    """Yaw, pitch, roll [3] and 68 points [68, 2] by the face mesh; nan where no face is found."""
    faces = detector.detect(picture, max_faces=1)
    if not faces:
        return np.full(3, np.nan), np.full((68, 2), np.nan)
    pose = pose_of(faces[0].landmarks)
    points = points_68(faces[0].landmarks) / picture.shape[0]
    return np.array([pose.yaw, pose.pitch, pose.roll]), points.astype(np.float64)


@dataclass(frozen=True)
class Originals:
    """What is read from original pictures once, for all rates; by path in the index.

    `landmarks` by face-api, a judge; `mirrored`: by the same from mirrored pictures, and mirrored
    back; `mesh` by the face mesh, which taught the heads.
    """

    faceres: dict[str, tuple[Floats, float, float]]
    pose: dict[str, Floats]
    landmarks: dict[str, Floats]
    mesh: dict[str, Floats] = field(default_factory=dict)
    mirrored: dict[str, Floats] = field(default_factory=dict)

    def gender(self, row: FaceRow) -> str:
        """What the index says, else what `faceres` reads from the original; empty: neither."""
        path = row.fields["path"]
        if row.fields["gender"] or path not in self.faceres:
            return row.fields["gender"]
        return "male" if self.faceres[path][2] >= 0.5 else "female"

    @classmethod
    def read(cls, rows: Sequence[FaceRow], judges: Judges, tell: Tell) -> Originals:
        """`faceres` stays empty where torch or its weights are missing."""
        weights = cache_dir() / "teachers" / "faceres.safetensors"
        teacher = find_spec("torch") is not None and weights.is_file()
        faceres = {}
        if teacher:
            crops = (load_rgb(r.path, 256) for r in tell(rows, "faceres on originals"))
            seen = faceres_on(crops)
            faceres = {
                row.fields["path"]: (seen.embedding[i], float(seen.age[i]), float(seen.gender[i]))
                for i, row in enumerate(rows)
            }
        detector, pose, mesh = FaceDetector(), {}, {}
        for row in tell([r for r in rows if r.set != "celebahq512"], "mesh on originals"):
            path = row.fields["path"]
            pose[path], mesh[path] = mesh_of(detector, load_rgb(row.path, 256))
        landmarks, mirrored = {}, {}
        for row in tell([r for r in rows if r.set == "celebahq512png"], "68 points on originals"):
            crop = load_rgb(row.path, WORKING_SIZE)[None]
            landmarks[row.fields["path"]] = judges.landmarks68(crop)[0].astype(np.float64)
            there = judges.landmarks68(np.ascontiguousarray(crop[:, :, ::-1]))[0]
            back = there.astype(np.float64)[FLIP_68]
            mirrored[row.fields["path"]] = np.stack((1 - back[:, 0], back[:, 1]), axis=1)
        return cls(faceres, pose, landmarks, mesh, mirrored)


def beside_vvc(
    basics: Basics, points: Sequence[VvcPoint], originals: Originals
) -> list[dict[str, Any]]:
    """Our tasks on the pictures that VVC was coded on, and networks on VVC's pictures."""
    index = {
        r.path.name: i
        for i, r in enumerate(basics.rows)
        if r.set in ("celebahq512png", "london1024") and r.path.name in points[0].sizes
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
    points = basics.arrays("landmarks")
    pose = [basics.numbers("pose", name) for name in ("yaw", "pitch", "roll")]
    age, gender = basics.numbers("age"), basics.numbers("gender")
    path = {name: basics.rows[i].fields["path"] for name, i in index.items()}
    fields = {name: basics.rows[i].fields for name, i in index.items()}

    for task, truths in (("landmarks", originals.landmarks), ("mesh", originals.mesh)):
        members = [
            n
            for n, i in index.items()
            if path[n] in truths and np.isfinite(truths[path[n]]).all() and i in points
        ]
        if members:
            truth = np.stack([truths[path[n]] for n in members]).astype(np.float32)
            ours = np.stack([points[index[n]] for n in members]).astype(np.float32)
            yield task, False, members, float(landmark_error(truth, ours).mean())
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

    Landmarks by face-api on the original's crop; pose and, against itself, points by the mesh; age
    and gender by `faceres`. Where the mesh finds no face its errors are `NO_FACE`.
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
            task: {} for task in ("landmarks", "mesh", "pose", "age", "gender")
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
            pose, mesh = mesh_of(detector, picture)
            away = float(np.abs(pose - originals.pose[key]).mean())
            values["pose"][name] = away if np.isfinite(away) else NO_FACE["pose"]
            truth, ours = (x[None].astype(np.float32) for x in (originals.mesh[key], mesh))
            away = float(landmark_error(truth, ours)[0])
            values["mesh"][name] = away if np.isfinite(away) else NO_FACE["mesh"]
        labelled = [r for r in chosen if r.set == "london1024"]
        if originals.faceres and labelled:
            seen = faceres_on(iter([pictures[r.path.name] for r in labelled]))
            for row, age, male in zip(labelled, seen.age, seen.gender, strict=True):
                values["age"][row.path.name] = abs(float(age) - float(row.fields["age"]))
                told = (male >= 0.5) == (row.fields["gender"] == "male")
                values["gender"][row.path.name] = float(told)
        points.append(VvcPoint(label, sizes, values))
    return points
