"""dlib's 68 landmarks: from the 468 of the face mesh, and where mirroring puts them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLIP_68", "points_68"]

# fmt: off
# 17 points equally far apart along the outline of the mesh, from ear to ear, on the mean of
# frontal ones: each is a point of the outline or the middle of two.
_JAW = (
    (127, 127), (234, 93), (93, 132), (132, 58), (172, 172), (136, 136), (149, 149), (176, 148),
    (152, 152),
    (400, 377), (378, 378), (365, 365), (397, 397), (288, 361), (361, 323), (323, 454), (356, 356),
)
# The points nearest to the others: brows, bridge and base of the nose, eyes, outer and inner lips.
_OTHERS = (
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
)
# fmt: on
# iBUG order of the 68 points after a mirroring of the picture.
FLIP_68 = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]
)


def points_68(mesh: NDArray[np.float32]) -> NDArray[np.float32]:
    """dlib's 68 points [..., 68, 2] of meshes [..., 468, 3]."""
    plane = mesh[..., :2]
    jaw = plane[..., np.array(_JAW), :].mean(axis=-2)  # [..., 17, 2]
    return np.concatenate((jaw, plane[..., np.array(_OTHERS), :]), axis=-2).astype(np.float32)
