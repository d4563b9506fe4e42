"""Judges: networks that measure decoded faces and that no loss has ever seen.

Belongs here: running them, and the distances that are built from them. Not here: teachers
(`training.teachers`), rates and anchors (`sfic.evaluation.vvc`), reports.

Identity and landmarks are read from crops that are placed on the *reference* picture and applied to
both, so that a judge compares faces and not detections.

Small networks ship in `models/judges/`. `vgg` and `features` are too large for that: they are built
once by `python -m training.convert_judges` into `SFIC_CACHE/judges` (default `~/.cache/sfic`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sfic.detection import DetectedFace, FaceDetector
from sfic.errors import InvalidInput, MissingExtra
from sfic.locations import models_dir

__all__ = ["Judges", "Placement", "kid", "landmark_error", "polynomial_kernel", "psnr256"]

Pictures = NDArray[np.uint8]
Floats = NDArray[np.float32]

WORKING_SIZE = 512
# Where ArcFace (Deng et al. 2019) puts eyes, nose tip and mouth corners in its 112 px crop.
ARCFACE_112 = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
# The same five points in an FFHQ-aligned crop, mean over 12 faces; used where no face is found.
MEAN_POINTS = np.array(
    [[0.371, 0.470], [0.623, 0.475], [0.497, 0.636], [0.382, 0.729], [0.609, 0.735]]
)
MEAN_BOX = np.array([0.17, 0.32, 0.83, 0.98])
_BOX_SCALE = 1.2
_RIGHT_EYE, _LEFT_EYE, _NOSE, _MOUTH = (33, 133), (362, 263), 1, (61, 291)  # mesh points


@dataclass(frozen=True)
class Placement:
    """Where a face lies in aligned crops: points [N, 5, 2] and boxes [N, 4], 0..1; found [N]."""

    points: NDArray[np.float64]
    boxes: NDArray[np.float64]
    found: NDArray[np.bool_]


class Judges:
    """All judges on the CPU; networks are loaded when first needed, and shared by threads.

    Pictures are uint8 RGB [N, S, S, 3], FFHQ-aligned; any S, they are scaled to 512.
    Raises InvalidInput for other arrays, MissingExtra if a large network was not built yet.
    """

    def __init__(self, threads: int = 1, folder: Path | None = None) -> None:
        """`folder`: of the small networks, by default `models/judges`."""
        self._threads = threads
        self._folder = folder or models_dir() / "judges"
        self._sessions: dict[str, Any] = {}
        self._detector: FaceDetector | None = None
        self._lock = threading.Lock()

    def has(self, name: str) -> bool:
        """Whether a network is there: mobileface, dlib, landmarks68, vgg or features."""
        return self._file(name).is_file()

    def digest(self, name: str) -> str:
        """SHA-256 of a network's file. Raises MissingExtra if it is not there."""
        return hashlib.sha256(self._found(name).read_bytes()).hexdigest()

    def _file(self, name: str) -> Path:
        path = self._folder / f"{name}.onnx"
        if path.is_file():
            return path
        cache = Path(os.environ.get("SFIC_CACHE", Path.home() / ".cache" / "sfic"))
        return cache / "judges" / f"{name}.onnx"

    def _found(self, name: str) -> Path:
        path = self._file(name)
        if not path.is_file():
            raise MissingExtra(
                f"the judge {name} is not built: run python -m training.convert_judges"
            )
        return path

    def _session(self, name: str) -> Any:
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._load(self._found(name))
            return self._sessions[name]

    def _load(self, path: Path) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        batches = [i.shape[0] for i in session.get_inputs()]
        if len(batches) == 2 and batches[0] == batches[1]:  # takes no single reference
            raise MissingExtra(
                f"the judge {path.stem} is of an older build: run python -m training.convert_judges"
            )
        return session

    def _run(self, name: str, batch: int, *arrays: NDArray[Any]) -> Floats:
        session = self._session(name)
        names = [i.name for i in session.get_inputs()]
        parts = []
        for start in range(0, len(arrays[-1]), batch):
            part = [
                np.ascontiguousarray(a if len(a) == 1 else a[start : start + batch]) for a in arrays
            ]
            parts.append(session.run(None, dict(zip(names, part, strict=True)))[0])
        return np.concatenate(parts).astype(np.float32)

    def place(self, pictures: Pictures) -> Placement:
        """Find the face in each aligned crop; where there is none, the mean place stands in."""
        pictures = _scaled(pictures, WORKING_SIZE)
        with self._lock:
            if self._detector is None:
                self._detector = FaceDetector(threads=self._threads)
            detector = self._detector
        count = len(pictures)
        points = np.repeat(MEAN_POINTS[None], count, 0)
        boxes = np.repeat(MEAN_BOX[None], count, 0)
        found = np.zeros(count, np.bool_)
        for i, picture in enumerate(pictures):
            faces = detector.detect(picture)
            if faces:
                mesh = _central(faces).landmarks[:, :2].astype(np.float64) / WORKING_SIZE
                points[i] = (
                    mesh[list(_RIGHT_EYE)].mean(0),
                    mesh[list(_LEFT_EYE)].mean(0),
                    mesh[_NOSE],
                    mesh[_MOUTH[0]],
                    mesh[_MOUTH[1]],
                )
                low, high = mesh.min(0), mesh.max(0)
                centre, half = (low + high) / 2, _BOX_SCALE * (high - low).max() / 2
                boxes[i] = (*(centre - half), *(centre + half))
                found[i] = True
        return Placement(points, boxes, found)

    def identity(self, pictures: Pictures, place: Placement | None = None) -> Floats:
        """Unit embeddings [N, 256] by `mobileface`; `place`: of the reference, else its own."""
        return self._embed("mobileface", pictures, place, 112)

    def identity_dlib(self, pictures: Pictures, place: Placement | None = None) -> Floats:
        """Unit embeddings [N, 128] by dlib's recogniser. Cosines are high: .9 can be strangers."""
        return self._embed("dlib", pictures, place, 150)

    def _embed(self, name: str, pictures: Pictures, place: Placement | None, side: int) -> Floats:
        pictures = _scaled(pictures, WORKING_SIZE)
        place = place or self.place(pictures)
        template = ARCFACE_112 * (side / 112)
        crops = [
            cv2.warpAffine(p, _similarity(q * WORKING_SIZE - 0.5, template), (side, side))
            for p, q in zip(pictures, place.points, strict=True)
        ]
        return self._run(name, 16, np.stack(crops).astype(np.uint8))

    def landmarks68(self, pictures: Pictures, place: Placement | None = None) -> Floats:
        """dlib's 68 points [N, 68, 2] by face-api, in 0..1 of the picture."""
        pictures = _scaled(pictures, WORKING_SIZE)
        place = place or self.place(pictures)
        crops = np.stack([_cut(p, b) for p, b in zip(pictures, place.boxes, strict=True)])
        points = self._run("landmarks68", 16, crops).astype(np.float64)
        corner, side = place.boxes[:, None, :2], place.boxes[:, 2] - place.boxes[:, 0]
        return np.asarray(corner + points * side[:, None, None], dtype=np.float32)

    def vgg_distance(self, a: Pictures, b: Pictures) -> Floats:
        """Distance [N] of pictures at 256 px over a VGG16 trunk (not LPIPS: unweighted).

        `a`: as many as `b`, or one that all of `b` are compared with, which takes half the time.
        """
        return self._run("vgg", 8 if len(a) == 1 else 2, _reduced(a), _reduced(b))

    def features(self, pictures: Pictures) -> Floats:
        """EfficientNet-lite0's pooled features [N, 1280] at 224 px, for `kid`.

        Not a judge: this network is also used in training, as perceptual loss.
        """
        return self._run("features", 8, _scaled(pictures, 224))


def landmark_error(reference: Floats, decoded: Floats) -> Floats:
    """Mean distance of 68 points [N, 68, 2], in % of the distance between the eyes' centres."""
    eyes = reference[:, 36:42].mean(1) - reference[:, 42:48].mean(1)
    error = np.linalg.norm(reference - decoded, axis=2).mean(1)
    return np.asarray(100 * error / np.linalg.norm(eyes, axis=1), dtype=np.float32)


def psnr256(a: Pictures, b: Pictures) -> Floats:
    """Peak signal-to-noise ratio [N] in dB, over RGB, both averaged down to 256 px."""
    difference = _reduced(a).astype(np.float64) - _reduced(b)
    error = np.maximum(np.square(difference).mean((1, 2, 3)), 1e-10)
    return np.asarray(10 * np.log10(255.0**2 / error), dtype=np.float32)


def polynomial_kernel(
    a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """(x.y / D + 1)^3 of features [N, D] and [M, D]: float64 [N, M]."""
    products = a.astype(np.float64) @ b.astype(np.float64).T
    return np.asarray((products / a.shape[1] + 1) ** 3)


def kid(
    a: NDArray[np.floating[Any]],
    b: NDArray[np.floating[Any]],
    subsets: int = 100,
    size: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """Kernel distance of two sets of features [N, D], [M, D], and its standard error.

    Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, section 4): the
    value over all features; the error from the spread over random subsets, scaled to the full size.
    """
    if min(len(a), len(b)) < 2:
        raise InvalidInput("kid needs two pictures or more in each set")
    kxx, kyy, kxy = (polynomial_kernel(p, q) for p, q in ((a, a), (b, b), (a, b)))

    def mmd(i: NDArray[np.int64], j: NDArray[np.int64]) -> float:
        m, n = len(i), len(j)
        xx, yy = kxx[np.ix_(i, i)], kyy[np.ix_(j, j)]
        within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (
            n * (n - 1)
        )
        return float(within - 2 * kxy[np.ix_(i, j)].mean())

    smallest = min(len(a), len(b))
    size = max(2, min(size, smallest // 2))
    rng = np.random.default_rng(seed)
    spread = [
        mmd(rng.choice(len(a), size, replace=False), rng.choice(len(b), size, replace=False))
        for _ in range(subsets)
    ]
    value = mmd(np.arange(len(a)), np.arange(len(b)))
    return value, float(np.std(spread, ddof=1) * np.sqrt(size / smallest))


def _central(faces: list[DetectedFace]) -> DetectedFace:
    """The face of an aligned crop: nearest to where alignment puts it, for its size."""

    def distance(face: DetectedFace) -> float:
        x = (face.box[0] + face.box[2]) / 2 / WORKING_SIZE - 0.5
        y = (face.box[1] + face.box[3]) / 2 / WORKING_SIZE - 0.6
        return float(np.hypot(x, y)) / face.size

    return min(faces, key=distance)


def _scaled(pictures: Pictures, size: int) -> Pictures:
    """Square pictures at `size`: averaged down, or bicubic up."""
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise InvalidInput("pictures must be uint8 [N, S, S, 3]")
    side = pictures.shape[1]
    if pictures.shape[2] != side or not len(pictures):
        raise InvalidInput("pictures must be square, and at least one")
    if side == size:
        return pictures
    how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    scaled = [cv2.resize(p, (size, size), interpolation=how) for p in pictures]
    return np.stack(scaled).astype(np.uint8)


def _reduced(pictures: Pictures) -> Pictures:
    """At 256 px, by way of 512 px, where every other judge looks too."""
    return _scaled(_scaled(pictures, WORKING_SIZE), 256)


def _similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Similarity [2, 3] that brings points [K, 2] nearest to others (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, v = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ v))])
    linear = (u * sign) @ v * ((s * sign).sum() / np.square(a).sum())
    return np.column_stack((linear, target.mean(0) - linear @ source.mean(0)))


def _cut(picture: Pictures, box: NDArray[np.float64], size: int = 112) -> Pictures:
    """The box (0..1, may reach outside: black) at `size`."""
    side = picture.shape[0]
    left, top, right, bottom = np.rint((box + 1) * side).astype(int)
    padded = cv2.copyMakeBorder(picture, side, side, side, side, cv2.BORDER_CONSTANT)
    face = padded[max(top, 0) : bottom, max(left, 0) : right]
    how = cv2.INTER_AREA if face.shape[0] > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(face, (size, size), interpolation=how), dtype=np.uint8)
