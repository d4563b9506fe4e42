"""The FFHQ alignment: from a face's landmarks to an upright square crop, and back into the frame.

Belongs here: where the square lies, the cut, pasting back. Not here: finding landmarks
(`detection`), the resampling itself (`sampling`).

The square is the one of Karras et al. (ffhq-dataset, `recreate_aligned_images`): upright along the
eyes and across the mouth, centred between them, its side a multiple of the eye distance or of the
eye-to-mouth distance, whichever gives more. FFHQ took the points from dlib's 68 landmarks; here
they come from the face mesh, and the two multiples are refitted on FFHQ crops so that the same
square comes out (see `models/landmarks.md` for the errors left).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfic.errors import InvalidInput
from sfic.sampling import corners, sample_square, side_length

if TYPE_CHECKING:
    from sfic.detection import DetectedFace

__all__ = ["Placement", "align", "paste_back", "place"]

# Mesh points where dlib's 36..41 (the eye on the picture's left), 42..47, 48 and 54 lie.
_EYE_ON_LEFT = (33, 160, 158, 133, 153, 144)
_EYE_ON_RIGHT = (362, 385, 387, 263, 373, 380)
_MOUTH_ON_LEFT, _MOUTH_ON_RIGHT = 61, 291

# Half of the side, in eye distances and in eye-to-mouth distances. FFHQ has 2.0 and 1.8 for dlib's
# points; these minimise the scale error over half of 1,000 FFHQ crops.
_HALF_PER_EYES = 1.946
_HALF_PER_MOUTH = 1.830
_DOWN = 0.1  # FFHQ: the centre is a tenth of the way from the eyes to the mouth


@dataclass(frozen=True)
class Placement:
    """Where an aligned crop lies in its picture.

    matrix: 2 x 3, maps the crop's unit square (u right, v down, 0..1) to continuous picture
    coordinates (pixel i covers [i, i+1)), whatever the crop's number of pixels. It may reach
    beyond the picture of width x height.
    """

    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    width: int
    height: int

    def __post_init__(self) -> None:
        """Raise `InvalidInput` if the matrix cannot place a crop."""
        array = self.affine
        if array.shape != (2, 3) or not np.isfinite(array).all() or self.source_size < 1e-6:
            raise InvalidInput("placement: matrix must be 2 x 3, finite and invertible")
        if self.width < 1 or self.height < 1:
            raise InvalidInput("placement: width and height must be at least 1")

    @property
    def affine(self) -> NDArray[np.float64]:
        """The matrix as float64 [2, 3]."""
        return np.array(self.matrix, np.float64)

    @property
    def source_size(self) -> float:
        """Side of the crop's square in source pixels; its square is what bpp_source divides by."""
        return side_length(self.affine)

    @property
    def quad(self) -> NDArray[np.float64]:
        """Corners in the picture, [4, 2]: top left, top right, bottom right, bottom left."""
        return corners(self.affine)

    def to_picture(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Crop coordinates 0..1 [n, 2] to picture pixels [n, 2]."""
        affine = self.affine
        return np.asarray(points, np.float64) @ affine[:, :2].T + affine[:, 2]

    def to_crop(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Picture pixels [n, 2] to crop coordinates [n, 2], 0..1 inside the crop."""
        affine = self.affine
        return (np.asarray(points, np.float64) - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, fit for JSON; `from_dict` gives back an equal placement."""
        return {
            "matrix": [list(row) for row in self.matrix],
            "width": self.width,
            "height": self.height,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Placement:
        """Inverse of `to_dict`. Raises `InvalidInput` if a field is missing or wrong."""
        try:
            rows: Sequence[Sequence[float]] = values["matrix"]
            if [len(row) for row in rows] != [3, 3]:
                raise ValueError("matrix is not 2 x 3")
            (a, b, c), (d, e, f) = ([float(value) for value in row] for row in rows)
            return cls(((a, b, c), (d, e, f)), int(values["width"]), int(values["height"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(f"not a placement: {error}") from error


def place(landmarks: NDArray[np.floating[Any]], width: int, height: int) -> Placement:
    """The FFHQ square for one face: landmarks [468, 2 or 3] in pixels of a width x height picture.

    Raises `InvalidInput` if eyes and mouth coincide, so that no square is defined.
    """
    points = np.asarray(landmarks, np.float64)[:, :2]
    left, right = points[list(_EYE_ON_LEFT)].mean(0), points[list(_EYE_ON_RIGHT)].mean(0)
    eyes = (left + right) / 2
    across = right - left
    down = (points[_MOUTH_ON_LEFT] + points[_MOUTH_ON_RIGHT]) / 2 - eyes
    direction = across + np.array([down[1], -down[0]])  # the mean of both ideas of "to the right"
    length = float(np.linalg.norm(direction))
    if not (math.isfinite(length) and length > 1e-6):
        raise InvalidInput("landmarks do not form a face")
    half = max(
        _HALF_PER_EYES * float(np.linalg.norm(across)),
        _HALF_PER_MOUTH * float(np.linalg.norm(down)),
    )
    u = direction * (2 * half / length)
    v = np.array([-u[1], u[0]])
    corner = eyes + _DOWN * down - (u + v) / 2
    (a, d), (b, e), (c, f) = u.tolist(), v.tolist(), corner.tolist()
    return Placement(((a, b, c), (d, e, f)), width, height)


def align(
    rgb: NDArray[np.uint8], face: DetectedFace, size: int = 1024
) -> tuple[NDArray[np.uint8], Placement]:
    """Cut the FFHQ-aligned square of one face: (uint8 [size, size, 3], where it lies).

    Beyond the picture's edge the crop is reflected, blurred and faded as in FFHQ. A face smaller
    than `size` is enlarged; `Placement.source_size` tells how many pixels there really were.

    Raises `InvalidInput` for a size outside 16..4096 or landmarks that form no face.
    """
    if not 16 <= size <= 4096:
        raise InvalidInput(f"crop size must be 16..4096, not {size}")
    height, width = rgb.shape[:2]
    placement = place(face.landmarks, width, height)
    return sample_square(rgb, placement.affine, size, soft_border=True), placement


def paste_back(
    frame: NDArray[np.uint8],
    crop: NDArray[np.uint8],
    placement: Placement,
    feather: float = 0.1,
) -> NDArray[np.uint8]:
    """Lay a crop back where it was cut: a new frame, uint8 [H, W, 3].

    The crop (uint8 [S, S, 3], any S) is reduced before the warp if it has more pixels than its
    place in the frame, and blended in over a margin of `feather` (0..0.5 of its side) by a smooth
    step, so that no seam shows. The frame may be a scaled copy of the picture of `placement`.

    Raises `InvalidInput` for wrong shapes or a frame of another aspect.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise InvalidInput("frame must be uint8 [H, W, 3]")
    if crop.ndim != 3 or crop.shape[0] != crop.shape[1] or crop.shape[2] != 3:
        raise InvalidInput("crop must be uint8 [S, S, 3]")
    if crop.dtype != np.uint8 or not 0.0 <= feather <= 0.5:
        raise InvalidInput("crop must be uint8 and feather 0..0.5")
    height, width = frame.shape[:2]
    scale = np.array([width / placement.width, height / placement.height])
    if abs(scale[0] / scale[1] - 1) > 0.01:
        raise InvalidInput(
            f"frame of {width}x{height} does not match the picture of "
            f"{placement.width}x{placement.height}"
        )
    matrix = placement.affine * scale[:, None]
    quad = corners(matrix)
    low = np.clip(np.floor(quad.min(axis=0)), 0, [width, height]).astype(int)
    high = np.clip(np.ceil(quad.max(axis=0)), 0, [width, height]).astype(int)
    result = frame.copy()
    if (high <= low).any():
        return result

    source = crop
    side = max(1, round(side_length(matrix)))
    if side < crop.shape[0]:
        source = np.asarray(cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    size = source.shape[0]
    inverse = np.linalg.inv(matrix[:, :2])
    x = np.arange(low[0], high[0]) + 0.5
    y = np.arange(low[1], high[1])[:, None] + 0.5
    u = inverse[0, 0] * (x - matrix[0, 2]) + inverse[0, 1] * (y - matrix[1, 2])  # [h, w], 0..1
    v = inverse[1, 0] * (x - matrix[0, 2]) + inverse[1, 1] * (y - matrix[1, 2])
    warped = cv2.remap(
        source,
        (u * size - 0.5).astype(np.float32),
        (v * size - 0.5).astype(np.float32),
        interpolation=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    inside = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
    ramp = np.clip(inside / max(feather, 1 / side), 0, 1)  # at least one frame pixel
    weight = (ramp * ramp * (3 - 2 * ramp))[:, :, None].astype(np.float32)
    region = result[low[1] : high[1], low[0] : high[0]]
    blended = region + weight * (warped.astype(np.float32) - region)
    region[...] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
    return result
