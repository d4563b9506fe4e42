"""Antialiased affine resampling between a picture and a square cut from it.

Belongs here: the one warp that detection, alignment and pasting share. Not here: where the square
lies (`alignment`), what is done with it.

A *placement matrix* is float64 [2, 3] and maps the unit square (u right, v down, 0..1) to
continuous picture coordinates, in which pixel (i, j) covers [i, i+1) x [j, j+1). It does not
depend on the number of pixels the square is sampled with.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["corners", "sample_square", "side_length"]


def corners(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners of the square in the picture, [4, 2]: top left, top right, bottom right, left."""
    unit = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], np.float64)
    return unit @ matrix.T


def side_length(matrix: NDArray[np.float64]) -> float:
    """Side of the square in source pixels (of a sheared one: root of its area)."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def sample_square(
    rgb: NDArray[np.uint8], matrix: NDArray[np.float64], size: int, soft_border: bool = False
) -> NDArray[np.uint8]:
    """Cut the square at `matrix` out of a picture, antialiased.

    rgb uint8 [H, W, 3]; returns uint8 [size, size, 3]. The part of the picture under the square is
    first reduced by area averaging, so that the warp itself is close to 1:1. What lies outside is
    reflected; with `soft_border` also blurred and faded towards the median colour, as in FFHQ
    (ffhq-dataset, `recreate_aligned_images`).
    """
    height, width = rgb.shape[:2]
    side = side_length(matrix)
    quad = corners(matrix)
    border = max(3, int(np.rint(side * 0.1)))
    low = np.floor(quad.min(axis=0)).astype(int) - border
    high = np.ceil(quad.max(axis=0)).astype(int) + border
    inside_low = np.clip(low, 0, [width - 1, height - 1])
    inside_high = np.clip(high, inside_low + 1, [width, height])
    part = rgb[inside_low[1] : inside_high[1], inside_low[0] : inside_high[0]]
    origin = inside_low.astype(np.float64)

    reduction = np.ones(2)
    if side > size:
        reduced = np.maximum(np.rint((inside_high - inside_low) * (size / side)), 1).astype(int)
        reduction = reduced / (inside_high - inside_low)
        shape = (int(reduced[0]), int(reduced[1]))
        part = np.asarray(cv2.resize(part, shape, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    outside = np.maximum(inside_low - quad.min(axis=0), quad.max(axis=0) - inside_high)
    if soft_border and outside.max() > -4.0:
        part, offset = _pad_softly(part, quad, origin, reduction, side)
        origin = origin - offset / reduction

    to_part = np.column_stack(
        [matrix[:, :2] * reduction[:, None] / size, (matrix[:, 2] - origin) * reduction]
    )
    to_part[:, 2] += to_part[:, :2] @ np.array([0.5, 0.5]) - 0.5
    warped = cv2.warpAffine(
        part,
        to_part,
        (size, size),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(warped, dtype=np.uint8)


def _pad_softly(
    part: NDArray[np.uint8],
    quad: NDArray[np.float64],
    origin: NDArray[np.float64],
    reduction: NDArray[np.float64],
    side: float,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """FFHQ's padding: reflect, then blur and fade what was made up. Returns it and its offset."""
    local = (quad - origin) * reduction
    reach = side * float(reduction.mean())
    height, width = part.shape[:2]
    needed = np.array(
        [-local[:, 0].min(), -local[:, 1].min()]
        + [local[:, 0].max() - width, local[:, 1].max() - height]
    )
    pads = np.maximum(needed + max(reach * 0.1, 3.0), reach * 0.3)
    left, top, right, bottom = np.ceil(pads).astype(int)
    padded = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_REFLECT_101)
    y = np.arange(padded.shape[0], dtype=np.float32)[:, None]
    x = np.arange(padded.shape[1], dtype=np.float32)[None]
    horizontal = 1 - np.minimum(x / left, (padded.shape[1] - 1 - x) / right)
    vertical = 1 - np.minimum(y / top, (padded.shape[0] - 1 - y) / bottom)
    mask = np.maximum(horizontal, vertical)[:, :, None]  # [H, W, 1], above 0 outside the picture
    result = padded.astype(np.float32)
    # A wide blur at a quarter of the resolution looks the same and costs a tenth.
    fraction = 0.25 if reach > 400 else 1.0
    small = cv2.resize(result, (0, 0), fx=fraction, fy=fraction, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigmaX=max(reach * 0.02 * fraction, 0.1))
    blurred = cv2.resize(small, (padded.shape[1], padded.shape[0]))
    result += (blurred - result) * np.clip(mask * 3 + 1, 0, 1)
    median = np.median(small, axis=(0, 1)).astype(np.float32)
    result += (median - result) * np.clip(mask, 0, 1)
    softened = np.clip(np.rint(result), 0, 255).astype(np.uint8)
    return softened, np.array([left, top], np.float64)
