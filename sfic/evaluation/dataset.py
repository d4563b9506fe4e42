"""Faces to evaluate on: folders of aligned crops, or of pictures that are aligned first.

Belongs here: finding and reading them. What is done with them is `sfic.evaluation.run`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sfic.alignment import Placement, align
from sfic.errors import InvalidInput, NoFaceFound
from sfic.evaluation.judges import WORKING_SIZE
from sfic.pictures import read_picture
from sfic.sampling import sample_square

__all__ = ["SUFFIXES", "Sample", "aligned_samples", "detected_samples", "picture_files"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
SMALLEST = 32


@dataclass(frozen=True)
class Sample:
    """One face: a name for tables, its file, and where it lies in it (None: the file is a crop)."""

    name: str
    path: Path
    placement: Placement | None = None

    def read(self) -> tuple[NDArray[np.uint8], float]:
        """The aligned crop, RGB uint8 [512, 512, 3], and its side in source pixels.

        Raises InvalidInput when the file is no picture, or not square where it must be.
        """
        picture = _read(self.path)
        if self.placement is not None:
            square = sample_square(picture, self.placement.affine, WORKING_SIZE, soft_border=True)
            return square, self.placement.source_size
        height, width = picture.shape[:2]
        if height != width or height < SMALLEST:
            raise InvalidInput(
                f"{self.path} is {width}x{height}: an aligned face is square, from {SMALLEST} px; "
                "--align cuts faces out of pictures"
            )
        if height == WORKING_SIZE:
            return picture, float(height)
        how = cv2.INTER_AREA if height > WORKING_SIZE else cv2.INTER_CUBIC
        scaled = cv2.resize(picture, (WORKING_SIZE, WORKING_SIZE), interpolation=how)
        return np.asarray(scaled, dtype=np.uint8), float(height)


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return read_picture(path)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}") from error


def digest(crop: NDArray[np.uint8]) -> str:
    """What a crop is known by in the store: results belong to pixels, not to file names."""
    return hashlib.sha256(crop.tobytes()).hexdigest()[:32]


def picture_files(sources: Sequence[Path]) -> list[Path]:
    """Picture files: `sources` are files, or folders that are searched through; no file twice.

    Raises InvalidInput when a source is not there, is no picture, or holds none.
    """
    files: dict[Path, None] = {}
    for source in sources:
        if source.is_dir():
            inside = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
            found = [p for p in inside if p.is_file()]
            if not found:
                raise InvalidInput(f"{source} holds no pictures ({', '.join(SUFFIXES)})")
        elif source.is_file() and source.suffix.lower() in SUFFIXES:
            found = [source]
        elif source.exists():
            raise InvalidInput(f"{source} is neither a folder nor a picture")
        else:
            raise InvalidInput(f"{source} does not exist")
        files |= dict.fromkeys(found)
    return list(files)


def aligned_samples(files: Iterable[Path]) -> list[Sample]:
    """Files that each are one FFHQ-aligned crop."""
    return [Sample(path.name, path) for path in files]


def detected_samples(
    files: Sequence[Path], max_faces: int = 8, seen: Callable[[], None] = lambda: None
) -> list[Sample]:
    """Every face that the detector finds in pictures; `seen` is called after each file.

    Raises NoFaceFound when there is none in any of them.
    """
    from sfic.detection import FaceDetector

    detector = FaceDetector()
    samples = []
    for path in files:
        picture = _read(path)
        for number, face in enumerate(detector.detect(picture, max_faces=max_faces), 1):
            _, placement = align(picture, face, 64)
            name = path.name if number == 1 else f"{path.name} face {number}"
            samples.append(Sample(name, path, placement))
        seen()
    if not samples:
        raise NoFaceFound("no face was found in any of the pictures")
    return samples
