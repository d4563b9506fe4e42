"""What is known of an integrator's aligned pictures: teachers' answers, and whose they are.

Belongs here: reading a folder of pictures and measuring it. `training.teacher_cache` does it for
the face sets that the shipped codec is trained on, with the same names of arrays.

Landmarks and pose come from the landmark network that ships. Identity, age, gender and smile need
teachers (`training.convert_teachers`). Without the identity teacher the embedding is the shape of
the face mesh: it tells face shapes apart, it is no face recognition.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch

from sfic.errors import ConfigError, InvalidInput
from sfic.pictures import read_picture
from training.codec_data import identity_of, to_tensor
from training.data import cache_dir
from training.teacher_cache import mesh_targets
from training.teachers import Expression

__all__ = ["MESH_SHAPE", "measure", "read_faces", "teacher_file"]

FloatArray = npt.NDArray[np.float32]

MESH_SHAPE: Final = "mesh shape"
SIZE: Final = 256
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
TASKS: Final = {"faceres": ("embedding", "age", "gender"), "expression": ("smile", "expression")}


def face_files(folder: Path) -> list[Path]:
    """Picture files under a folder, sorted; InvalidInput when there are none."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise InvalidInput(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return paths


def read_faces(paths: Sequence[Path]) -> npt.NDArray[np.uint8]:
    """Aligned pictures as uint8 [M, 256, 256, 3]; InvalidInput names one that is not square."""
    pictures = np.empty((len(paths), SIZE, SIZE, 3), np.uint8)
    for i, path in enumerate(paths):
        picture = read_picture(path)
        height, width = picture.shape[:2]
        if height != width:
            raise InvalidInput(f"{path} is {width}x{height}: aligned faces are square")
        how = cv2.INTER_AREA if height > SIZE else cv2.INTER_CUBIC
        pictures[i] = cv2.resize(picture, (SIZE, SIZE), interpolation=how)
    return pictures


def teacher_file(name: str) -> Path:
    """Weights of a teacher; ConfigError, with the command that makes them, when missing."""
    path = cache_dir() / "teachers" / f"{name}.safetensors"
    if not path.is_file():
        raise ConfigError(
            f"the teacher {name} is not in {path.parent}: make it with "
            "`python -m training.convert_teachers`, or leave it out of the configuration"
        )
    return path


def mesh_shape(mesh: FloatArray, found: FloatArray) -> FloatArray:
    """Unit vectors [M, 1404]: how each mesh [M, 468, 3] differs from the mean one; 0 if not found.

    Position, size and rotation are taken out (orthogonal Procrustes on the mean shape).
    """
    known = mesh[found > 0].astype(np.float64)
    known -= known.mean(axis=1, keepdims=True)
    known /= np.linalg.norm(known, axis=(1, 2), keepdims=True)
    mean = known[0]
    for _ in range(3):
        u, _, vt = np.linalg.svd(known.transpose(0, 2, 1) @ mean)  # [n, 3, 3]
        u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]  # rotations only
        known = known @ (u @ vt)
        mean = known.mean(axis=0)
        mean /= np.linalg.norm(mean)
    away = (known - mean).reshape(len(known), -1)
    vectors = np.zeros((len(mesh), away.shape[1]), np.float32)
    vectors[found > 0] = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    return vectors


@torch.no_grad()
def measure(
    pictures: npt.NDArray[np.uint8], teachers: Sequence[str]
) -> tuple[dict[str, FloatArray], dict[str, str | None]]:
    """Answers for aligned pictures uint8 [M, S, S, 3], and the teacher of each task (None: none).

    Names of arrays as in `training.teacher_cache`. Raises ConfigError for an unknown or missing
    teacher, InvalidInput when no face is found in any picture.
    """
    unknown = sorted(set(teachers) - set(TASKS))
    if unknown:
        raise ConfigError(f"unknown teachers {unknown}: there are {', '.join(TASKS)}")
    answers = mesh_targets(pictures)
    if not answers["mesh_found"].any():
        raise InvalidInput("no face was found in any picture: are they aligned face crops?")
    who: dict[str, str | None] = dict.fromkeys(
        ("embedding", "age", "gender", "smile", "expression", "glasses", "facial_hair", "parsing")
    )
    own = ("landmarks", "pose", "eyes_open", "mouth_open")
    who |= dict.fromkeys(own, "landmarks.onnx")
    if "faceres" in teachers:
        answers |= identity_of(pictures, teacher_file("faceres"))
    else:
        answers["embedding"] = mesh_shape(answers["mesh"], answers["mesh_found"])
        who["embedding"] = MESH_SHAPE
    if "expression" in teachers:
        network = Expression.load(teacher_file("expression"))
        parts = [
            network(to_tensor(pictures[start : start + 16]))
            for start in range(0, len(pictures), 16)
        ]
        answers["expressions"] = torch.cat(parts).numpy()
        answers["smile"] = answers["expressions"][:, 1]
    for teacher in teachers:
        who |= dict.fromkeys(TASKS[teacher], teacher)
    return answers, who
