"""How usable a captured face is: its size, blur and pose, and one score of them, 0..1.

Belongs here: what can be told from a crop and its landmarks before coding. Not here: the
confidence of a task result (that says how sure a result is, not how good the capture was).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfic.errors import InvalidInput

if TYPE_CHECKING:
    from sfic.alignment import Placement
    from sfic.detection import DetectedFace

__all__ = ["FaceScore", "Pose", "face_score", "pose_of"]

# Mesh points: outer eye corners, forehead, chin.
_EYE_ON_LEFT, _EYE_ON_RIGHT, _FOREHEAD, _CHIN = 33, 263, 10, 152
_PITCH_AT_REST = 3.0  # what forehead and chin give for people who look straight ahead (London set)

_SMALLEST, _LARGE_ENOUGH = 40.0, 512.0  # source pixels of the crop's side: score 0 and 1
_SHARP, _BLURRED = 0.35, 0.8  # blur measure: score 1 and 0
_BLUR_SIDE = 256  # the crop is measured at this size
_BLUR_WINDOW = 11  # pixels, as in scikit-image's `blur_effect`


@dataclass(frozen=True)
class Pose:
    """Head pose in degrees, 0 when facing the camera.

    yaw > 0: turned towards the picture's right; pitch > 0: looking up; roll > 0: clockwise in the
    picture.
    """

    yaw: float
    pitch: float
    roll: float


@dataclass(frozen=True)
class FaceScore:
    """score 0..1 (1 is best), and what it is made of.

    size: side of the aligned square in source pixels; blur: 0 (sharp) .. 1; pose: degrees.
    """

    score: float
    size: float
    blur: float
    pose: Pose


def pose_of(landmarks: NDArray[np.floating[Any]]) -> Pose:
    """Head pose from the mesh, [468, 3] with z in pixels. Raises `InvalidInput` if it is flat."""
    mesh = np.asarray(landmarks, np.float64)
    right = mesh[_EYE_ON_RIGHT] - mesh[_EYE_ON_LEFT]
    down = mesh[_CHIN] - mesh[_FOREHEAD]
    length = float(np.linalg.norm(right))
    if not (np.isfinite(mesh).all() and length > 1e-6):
        raise InvalidInput("landmarks do not form a face")
    right /= length
    down = down - (down @ right) * right
    height = float(np.linalg.norm(down))
    if height <= 1e-6:
        raise InvalidInput("landmarks do not form a face")
    down /= height
    return Pose(
        yaw=math.degrees(math.atan2(right[2], math.hypot(right[0], right[1]))),
        pitch=math.degrees(math.atan2(down[2], math.hypot(down[0], down[1]))) - _PITCH_AT_REST,
        roll=math.degrees(math.atan2(right[1], right[0])),
    )


def face_score(crop: NDArray[np.uint8], face: DetectedFace, placement: Placement) -> FaceScore:
    """Score one aligned crop (uint8 RGB [S, S, 3]) of `face`, cut at `placement`.

    The score is the geometric mean of three terms in 0..1, so that one bad property cannot be made
    up for by the others: size, linear in log2 of the source pixels from 40 to 512; blur, linear
    from 0.8 down to 0.35; pose, (cos yaw cos pitch)^2. Roll costs nothing: alignment removes it.
    It never rises when the source gets smaller or the head turns further away. Noise can pass for
    sharpness.
    """
    pose = pose_of(face.landmarks)
    blur = _blur(crop)
    size = placement.source_size
    terms = (
        math.log2(max(size, 1.0) / _SMALLEST) / math.log2(_LARGE_ENOUGH / _SMALLEST),
        (_BLURRED - blur) / (_BLURRED - _SHARP),
        (max(math.cos(math.radians(pose.yaw)) * math.cos(math.radians(pose.pitch)), 0.0)) ** 2,
    )
    score = math.prod(min(max(term, 0.0), 1.0) for term in terms) ** (1 / 3)
    return FaceScore(score=score, size=size, blur=blur, pose=pose)


def _blur(crop: NDArray[np.uint8]) -> float:
    """Blur by re-blurring (Crete et al., SPIE 6492, 2007): how little a blur changes the face.

    Measured on the middle of the crop, where the face is; 0..1, independent of contrast.
    """
    how = cv2.INTER_AREA if crop.shape[0] >= _BLUR_SIDE else cv2.INTER_CUBIC
    small = cv2.resize(crop, (_BLUR_SIDE, _BLUR_SIDE), interpolation=how)
    part = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)[
        _BLUR_SIDE // 4 : -_BLUR_SIDE // 8, _BLUR_SIDE // 5 : -_BLUR_SIDE // 5
    ]
    face = part.astype(np.float32)
    worst = 0.0
    for axis, window in ((0, (1, _BLUR_WINDOW)), (1, (_BLUR_WINDOW, 1))):
        change = np.abs(np.diff(face, axis=axis))
        left = np.abs(np.diff(cv2.blur(face, window), axis=axis))
        total = float(change.sum())
        kept = float(np.maximum(change - left, 0).sum())
        worst = max(worst, 1.0 if total <= 1e-6 else (total - kept) / total)
    return worst
