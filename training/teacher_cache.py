"""Teachers' answers for every picture of the face index, computed once.

    python -m training.teacher_cache [--split train dev]      # after convert_teachers

Writes `SFIC_CACHE/teachers/{split}_targets.npz`, rows in the order of `training.data.read_index`:

    paths          str [N]          as in the index
    embedding      float32 [N, 1024]  faceres at 224, unit
    age, gender    float32 [N]      faceres: years, probability of male
    age_faceapi, gender_faceapi  float32 [N]
    expressions    float32 [N, 7]   probabilities, order of `sfic.analysis.EXPRESSIONS`
    smile          float32 [N]      expressions[:, 1]
    mesh           float32 [N, 468, 3]  in the crop, x and y in 0..1, z in the same unit
    landmarks68    float32 [N, 68, 2]   the mesh's points where dlib's 68 lie, 0..1
    pose           float32 [N, 3]   yaw, pitch, roll in degrees (`sfic.face_score.pose_of`)
    mesh_found     float32 [N]      1 if there is a face; else the rows above are 0

Belongs here: only this. No judge is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfic.detection import DetectedFace, FaceDetector
from sfic.face_score import pose_of
from training.codec_data import identity_targets
from training.data import cache_dir, picture_array, read_index
from training.mesh_points import points_68
from training.teachers import AgeGender, Expression

SIZE = 256
BATCH = 16

def central_face(detector: FaceDetector, picture: NDArray[np.uint8]) -> DetectedFace | None:
    """The face of an aligned crop: the one whose box is nearest the middle, for its size."""

    def distance(face: DetectedFace) -> float:
        x = (face.box[0] + face.box[2]) / 2 / picture.shape[1] - 0.5
        y = (face.box[1] + face.box[3]) / 2 / picture.shape[0] - 0.6
        return float(np.hypot(x, y)) * picture.shape[0] / face.size

    return min(detector.detect(picture), key=distance, default=None)


def mesh_targets(pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Mesh, its 68 points and the pose of uint8 [N, S, S, 3]."""
    detector = FaceDetector(threads=1)
    count, size = pictures.shape[:2]
    out = {
        "mesh": np.zeros((count, 468, 3), np.float32),
        "pose": np.zeros((count, 3), np.float32),
        "mesh_found": np.zeros(count, np.float32),
    }
    for i, picture in enumerate(pictures):
        face = central_face(detector, np.ascontiguousarray(picture))
        if face is None:
            continue
        pose = pose_of(face.landmarks)
        out["mesh"][i] = face.landmarks / size
        out["pose"][i] = pose.yaw, pose.pitch, pose.roll
        out["mesh_found"][i] = 1
    out["landmarks68"] = points_68(out["mesh"])
    return out


@torch.no_grad()
def faceapi_targets(pictures: NDArray[np.uint8], teachers: Path) -> dict[str, NDArray[np.float32]]:
    """Expressions, age and gender of uint8 [N, S, S, 3] by face-api's networks."""
    expression = Expression.load(teachers / "expression.safetensors")
    age_gender = AgeGender.load(teachers / "age_gender.safetensors")
    columns: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, len(pictures), BATCH):
        part = torch.from_numpy(np.array(pictures[start : start + BATCH]))
        image = part.permute(0, 3, 1, 2).float() / 127.5 - 1  # [N, 3, S, S]
        columns.append((expression(image), *age_gender(image)))
    expressions, age, male = (torch.cat(c).numpy() for c in zip(*columns, strict=True))
    return {
        "expressions": expressions,
        "smile": expressions[:, 1],
        "age_faceapi": age,
        "gender_faceapi": male,
    }


def build(split: str) -> Path:
    """Compute and write one split; returns the file."""
    rows = read_index(split)
    pictures = picture_array(rows, SIZE, split)
    teachers = cache_dir() / "teachers"
    targets: dict[str, NDArray[Any]] = {
        "paths": np.array([row.fields["path"] for row in rows]),
        **faceapi_targets(pictures, teachers),
        **mesh_targets(pictures),
        **identity_targets(split, teachers / "faceres.safetensors"),
    }
    path = teachers / f"{split}_targets.npz"
    part = path.with_suffix(".part.npz")
    np.savez(part, **targets)
    part.rename(path)
    return path


def main() -> None:
    """Write the asked splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--split", nargs="+", default=["train", "dev"], choices=["train", "dev"])
    for split in parser.parse_args().split:
        print(build(split))


if __name__ == "__main__":
    main()
