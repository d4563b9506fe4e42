"""Training pictures: the face sets' index, decoded once into mapped arrays, and augmentation.

Nothing here knows of networks. The face sets are research data that live outside the repository
(`SFIC_SHARED`, default `../shared`); what is derived from them goes to `SFIC_CACHE`.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

REPOSITORY = Path(__file__).resolve().parent.parent
LABELS = REPOSITORY / "training" / "labels" / "facial_hair.csv"


def shared_dir() -> Path:
    """Folder of the shared face sets."""
    return Path(os.environ.get("SFIC_SHARED", REPOSITORY.parent / "shared"))


def cache_dir() -> Path:
    """Folder for generated data and checkpoints, made when missing."""
    path = Path(os.environ.get("SFIC_CACHE", Path.home() / ".cache" / "sfic"))
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class FaceRow:
    """One line of the index: a picture that is an FFHQ-aligned crop, and what is known of it."""

    path: Path
    split: str
    set: str
    fields: dict[str, str]


def read_index(split: str | None = None, sets: tuple[str, ...] = ()) -> list[FaceRow]:
    """Rows of the face index, of one split ("train" or "dev") and some sets (all when empty)."""
    root = shared_dir() / "data" / "faces"
    rows = []
    with (root / "index.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if split not in (None, line["split"]) or (sets and line["set"] not in sets):
                continue
            rows.append(FaceRow(root / line["path"], line["split"], line["set"], line))
    return rows


def read_facial_hair() -> dict[str, float]:
    """What was seen in pictures of the face sets, by path in the index.

    1: a beard or moustache, 0: none, 0.5: stubble, or hidden by a hand or shadow.
    """
    with LABELS.open(newline="") as file:
        return {row["path"]: float(row["facial_hair"]) for row in csv.DictReader(file)}


def load_rgb(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Picture as RGB uint8 [size, size, 3], area-averaged when it shrinks."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise FileNotFoundError(path)
    if bgr.shape[0] != size:
        how = cv2.INTER_AREA if bgr.shape[0] > size else cv2.INTER_CUBIC
        bgr = cv2.resize(bgr, (size, size), interpolation=how)
    return np.ascontiguousarray(bgr[..., ::-1])


def picture_array(rows: list[FaceRow], size: int, name: str) -> npt.NDArray[np.uint8]:
    """Pictures of `rows` as one memory-mapped uint8 array [N, size, size, 3], cached by `name`."""
    path = cache_dir() / f"pictures-{name}-{size}.npy"
    if not path.exists():
        pictures = np.stack([load_rgb(row.path, size) for row in rows])
        part = path.with_suffix(".part.npy")
        np.save(part, pictures)
        part.rename(path)
    array: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r")
    if len(array) != len(rows):
        raise ValueError(f"{path} holds {len(array)} pictures, the index {len(rows)}: delete it")
    return array


@dataclass(frozen=True)
class Geometry:
    """A mirroring, then a shift, turn and scaling, of pictures [S, S, 3] and points in them."""

    flip: bool
    matrix: npt.NDArray[np.float64]  # [2, 3], of pixels
    size: int

    @classmethod
    def draw(cls, size: int, rng: np.random.Generator, strength: float = 1.0) -> Geometry:
        """What alignment gets wrong."""
        flip = bool(rng.random() < 0.5)
        angle = rng.normal(0, 2.0 * strength)
        scale = float(np.exp(rng.normal(0, 0.02 * strength)))
        matrix = cv2.getRotationMatrix2D((size / 2, size / 2), angle, scale)
        matrix[:, 2] += rng.normal(0, 0.008 * size * strength, 2)
        return cls(flip, matrix, size)

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The moved picture, uint8 [S, S, 3]."""
        moved: npt.NDArray[np.uint8] = cv2.warpAffine(
            np.ascontiguousarray(picture[:, ::-1] if self.flip else picture),
            self.matrix,
            (self.size, self.size),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        return moved

    def move(
        self, points: npt.NDArray[np.float32], mirrored: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """points: [n, 2] in 0..1; `mirrored`: their order in a mirrored picture."""
        if self.flip:
            points = points[mirrored] * [-1, 1] + [1, 0]
        moved = points * self.size @ self.matrix[:, :2].T + self.matrix[:, 2]
        return (moved / self.size).astype(np.float32)


def recolour(
    picture: npt.NDArray[np.uint8], rng: np.random.Generator, strength: float = 1.0
) -> npt.NDArray[np.uint8]:
    """Another exposure, gamma and white balance of [S, S, 3] uint8."""
    gain = np.exp(rng.normal(0, 0.06 * strength, 3) + rng.normal(0, 0.12 * strength))
    gamma = np.exp(rng.normal(0, 0.1 * strength))
    curve = 255 * np.linspace(0, 1, 256)[:, None] ** gamma * gain
    lut = np.clip(curve, 0, 255).astype(np.uint8)  # [256, 3]
    return np.stack([lut[picture[..., c], c] for c in range(3)], axis=-1)


def augment_geometry(
    picture: npt.NDArray[np.uint8], rng: np.random.Generator, strength: float = 1.0
) -> npt.NDArray[np.uint8]:
    """Mirrored or not, moved a little, recoloured: [S, S, 3] uint8."""
    geometry = Geometry.draw(picture.shape[0], rng, strength)
    return recolour(geometry.apply(picture), rng, strength)


def degrade_capture(
    picture: npt.NDArray[np.uint8], rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """What cameras do to the encoder's input (never to the target): blur, noise, JPEG, low size."""
    size = picture.shape[0]
    if rng.random() < 0.3:
        small = int(size * rng.uniform(0.3, 0.9))
        picture = cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.5) * size / 128)
    if rng.random() < 0.2:
        noise = rng.normal(0, rng.uniform(2, 12), picture.shape)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = int(rng.integers(25, 90))
        _, coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(picture)
