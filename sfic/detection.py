"""Faces in a picture: boxes, keypoints and the 468 points of the face mesh.

Belongs here: the search over scales and tiles, non-maximum suppression, and the landmark network
that refines and confirms each face. Not here: reading pictures (`pictures`), crops (`alignment`).

    picture -> pyramid, tiles -> detector -> boxes, 6 keypoints -> non-maximum suppression
            -> landmark network, 2 to 4 times -> presence below 0.5: no face

Both networks are MediaPipe's (full-range BlazeFace; Face Mesh), converted to ONNX: see
`models/detector.md` and `models/landmarks.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfic.errors import BundleError, InvalidInput
from sfic.locations import models_dir
from sfic.runtime import make_session
from sfic.sampling import sample_square

__all__ = ["DetectedFace", "FaceDetector"]

_COARSE_SIDE = 128  # longer side of the first, cheap pass; even a face that fills it is found
_TILE = 384  # divisible by 32; larger passes leave the cache and cost more per pixel
_TILE_OVERLAP = 96  # more than the largest face that only this level can find
_LEVEL_RATIO = 3.5  # a level finds faces of 14 to 100 of its pixels, so neighbours overlap
_SMALLEST = 14  # pixels of a level from which a face is found reliably
_STRIDE = 4  # one anchor every 4 pixels
_ALIGN = 32  # the detector halves its input five times
_CANDIDATE_SCORE = 0.4  # the landmark network confirms, so candidates may be weak
_PRESENCE = 0.5
_NMS_OVERLAP = 0.3
_ROI_SCALE = 1.5
_MESH_SIDE = 192
_MOST_REFINEMENTS = 4
_UPRIGHT = math.radians(4.0)
_RIGHT_EYE_OUTER, _LEFT_EYE_OUTER = 33, 263  # mesh points; the person's right is left in a picture


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """One face. Coordinates are continuous picture pixels: pixel i covers [i, i+1).

    box: x0, y0, x1, y1 around forehead to chin; score: detector, 0..1; presence: landmark network,
    0..1; keypoints float32 [6, 2]: right eye, left eye, nose tip, mouth, right ear, left ear (the
    person's); landmarks float32 [468, 3]: the mesh, z in pixels, smaller is nearer.
    """

    box: tuple[float, float, float, float]
    score: float
    presence: float
    keypoints: NDArray[np.float32]
    landmarks: NDArray[np.float32]

    @property
    def size(self) -> float:
        """Longer side of the box in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


class FaceDetector:
    """Finds faces in pictures of any size. Safe to share between threads."""

    def __init__(
        self,
        detector: Path | None = None,
        landmarks: Path | None = None,
        threads: int = 1,
        provider: str = "cpu",
    ) -> None:
        """Load both networks (by default from `models/`) on the CPU with `threads` threads each.

        `provider`: of the landmark network, "cpu" or "openvino" (`sfic.runtime`), in float32 both.
        Raises `BundleError` if a model file is missing or damaged.
        """
        # Tiles have many shapes, for each of which OpenVINO would compile the network anew.
        self._detector = _load(detector or models_dir() / "detector.onnx", "cpu", threads)
        self._landmarks = _load(landmarks or models_dir() / "landmarks.onnx", provider, threads)

    def detect(
        self, rgb: NDArray[np.uint8], max_faces: int = 32, min_size: float = 40.0
    ) -> list[DetectedFace]:
        """Find faces in uint8 RGB [H, W, 3]; largest first, at most `max_faces`; [] if none.

        `min_size` is the box side in picture pixels down to which faces are searched for; smaller
        ones may be returned. Time grows with (picture side / min_size)^2, see `models/detector.md`.
        Faces may be turned by 60 degrees in the plane.

        Raises `InvalidInput` for another shape or type, or a limit below 1.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
            raise InvalidInput(f"expected uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
        if max_faces < 1 or not min_size >= 1:
            raise InvalidInput("max_faces and min_size must be at least 1")
        levels = _pyramid(np.ascontiguousarray(rgb), min_size)
        candidates = np.concatenate([self._search(level, scale) for level, scale in levels])
        faces: list[DetectedFace] = []
        for candidate in _merge(candidates):
            if len(faces) == max_faces:
                break
            face = self._refine(rgb, candidate)
            if face is not None and not any(_same_face(face, other) for other in faces):
                faces.append(face)
        return sorted(faces, key=lambda face: -face.size)

    def _search(self, level: NDArray[np.uint8], scale: float) -> NDArray[np.float64]:
        """Candidates of one level, float64 [n, 17]: score, box, 6 keypoints, in picture pixels."""
        rows = [np.zeros((0, 17))]
        for left, top, tile in _tiles(level):
            boxes, scores = self._detector.run(["boxes", "scores"], {"image": tile[None]})
            keep = np.flatnonzero(scores[0] > _CANDIDATE_SCORE)
            raw = boxes[0, keep].astype(np.float64)  # [n, 16]: centre, size, 6 points
            columns = tile.shape[1] // _STRIDE
            anchor = np.stack([keep % columns, keep // columns], axis=1) * _STRIDE + _STRIDE / 2
            centre = raw[:, :2] + anchor
            half = raw[:, 2:4] / 2
            points = raw[:, 4:].reshape(-1, 6, 2) + anchor[:, None]
            place = np.concatenate(
                [centre - half, centre + half, points.reshape(-1, 12)], axis=1
            ).reshape(-1, 8, 2)
            place = (place + [left, top]) / scale
            rows.append(np.column_stack([scores[0, keep], place.reshape(-1, 16)]))
        return np.concatenate(rows)

    def _refine(
        self, rgb: NDArray[np.uint8], candidate: NDArray[np.float64]
    ) -> DetectedFace | None:
        """Run the landmark network on the candidate, then where its own mesh lies, until upright.

        The detector's keypoints are poor on turned faces, the landmark network's are not.
        """
        box, points = candidate[1:5], candidate[5:].reshape(6, 2)
        centre = (box[:2] + box[2:]) / 2
        side = float(max(box[2:] - box[:2]))
        right, left = points[0], points[1]
        mesh = np.zeros((468, 3))
        presence = 0.0
        for attempt in range(_MOST_REFINEMENTS):
            if not (side >= 2.0 and np.isfinite(centre).all()):
                return None
            roll = math.atan2(left[1] - right[1], left[0] - right[0])
            matrix = _square(centre, side * _ROI_SCALE, roll)
            crop = sample_square(rgb, matrix, _MESH_SIDE)
            raw, score = self._landmarks.run(["landmarks", "presence"], {"image": crop[None]})
            presence = float(score[0])
            if presence < _PRESENCE:
                return None
            unit = raw[0].astype(np.float64) / _MESH_SIDE
            # The network answers in pixel indices (seen by mirroring), so centres are at + 0.5.
            mesh[:, :2] = (unit[:, :2] + 0.5 / _MESH_SIDE) @ matrix[:, :2].T + matrix[:, 2]
            mesh[:, 2] = unit[:, 2] * side * _ROI_SCALE
            turned = mesh[:, :2] @ _rotation(-roll).T
            low, high = turned.min(axis=0), turned.max(axis=0)
            centre = _rotation(roll) @ ((low + high) / 2)
            side = float(max(high - low))
            right, left = mesh[_RIGHT_EYE_OUTER, :2], mesh[_LEFT_EYE_OUTER, :2]
            across = (left - right) @ _rotation(roll)  # as the network saw it
            if attempt > 0 and abs(math.atan2(across[1], across[0])) < _UPRIGHT:
                break
        x0, y0 = mesh[:, :2].min(axis=0)
        x1, y1 = mesh[:, :2].max(axis=0)
        return DetectedFace(
            box=(float(x0), float(y0), float(x1), float(y1)),
            score=float(candidate[0]),
            presence=presence,
            keypoints=points.astype(np.float32),
            landmarks=mesh.astype(np.float32),
        )


def _load(path: Path, provider: str, threads: int) -> Any:
    if not Path(path).is_file():
        raise BundleError(f"model file is missing: {path}")
    try:
        return make_session(path, provider, threads, exact=True)
    except BundleError as error:
        raise BundleError(f"model file is damaged: {path}") from error


def _pyramid(rgb: NDArray[np.uint8], min_size: float) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Yield (picture, scale) from coarse to as fine as `min_size` needs, from side 128 up."""
    longer = max(rgb.shape[:2])
    coarse = _COARSE_SIDE / longer
    fine = max(coarse, min(1.0, _SMALLEST / min_size))
    steps = math.ceil(math.log(fine / coarse) / math.log(_LEVEL_RATIO) - 1e-9)
    scales = [coarse * (fine / coarse) ** (i / max(steps, 1)) for i in range(steps + 1)]
    picture, levels = rgb, []
    for scale in reversed(scales):  # each level from the finer one: antialiased and cheap
        size = [max(1, round(side * scale)) for side in rgb.shape[1::-1]]
        how = cv2.INTER_AREA if size[0] <= picture.shape[1] else cv2.INTER_LINEAR
        picture = np.asarray(cv2.resize(picture, size, interpolation=how), dtype=np.uint8)
        levels.append((picture, scale))
    yield from reversed(levels)


def _tiles(level: NDArray[np.uint8]) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Yield (left, top, tile) covering a level with overlap; black beyond its edges."""
    height, width = level.shape[:2]
    step = _TILE - _TILE_OVERLAP
    for top in range(0, max(height - _TILE_OVERLAP, 1), step):
        for left in range(0, max(width - _TILE_OVERLAP, 1), step):
            tile = level[top : top + _TILE, left : left + _TILE]
            down = -tile.shape[0] % _ALIGN
            across = -tile.shape[1] % _ALIGN
            yield left, top, np.pad(tile, ((0, down), (0, across), (0, 0)))


def _merge(candidates: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Weighted non-maximum suppression over all levels and tiles (BlazeFace, section 5).

    Each group of overlapping candidates becomes their score-weighted mean; best score first.
    """
    rest = candidates[np.argsort(-candidates[:, 0], kind="stable")]
    merged = []
    while len(rest):
        overlap = _overlap(rest[0, 1:5], rest[:, 1:5])
        overlap[0] = 1.0
        group = rest[overlap > _NMS_OVERLAP]
        mean = np.average(group, axis=0, weights=group[:, 0])
        mean[0] = rest[0, 0]
        merged.append(mean)
        rest = rest[overlap <= _NMS_OVERLAP]
    return merged


def _overlap(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of one box [4] with others [n, 4]."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    union = areas + np.prod(np.maximum(box[2:] - box[:2], 0)) - common
    return np.asarray(common / np.maximum(union, 1e-9), dtype=np.float64)


def _same_face(face: DetectedFace, other: DetectedFace) -> bool:
    """Whether two meshes lie on one face, though their candidate boxes hardly overlapped."""
    overlap = _overlap(np.array(face.box), np.array([other.box]))[0]
    apart = np.linalg.norm(face.landmarks[:, :2].mean(0) - other.landmarks[:, :2].mean(0))
    return bool(overlap > _NMS_OVERLAP or apart < 0.25 * max(face.size, other.size))


def _rotation(angle: float) -> NDArray[np.float64]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _square(centre: NDArray[np.float64], side: float, roll: float) -> NDArray[np.float64]:
    """Placement matrix of a square by its centre, side and clockwise turn."""
    axes = _rotation(roll) * side
    return np.column_stack([axes, centre - axes @ np.array([0.5, 0.5])])
