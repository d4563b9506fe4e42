"""Faces that a camera saw in too little light: made as bright as others before they are coded.

Why, what it gains and whom it concerns: docs/decisions/dim-light.md. Belongs here: which faces are
too dark, and by how much. A crop is judged by its brightest fiftieth, highlights and background,
and there by the brightest colour: what that says does not follow the colour of a skin.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from sfic.face import MOST_BRIGHTENED

__all__ = ["brighten", "darken"]

Rgb = npt.NDArray[np.uint8]

DIM: Final = 145.0  # of 255: crops whose highlights are below are made bright in full
CLEAR: Final = 165.0  # and those above not at all; between the two, by a share
WANTED: Final = 210.0  # of the highlights
_SIDE: Final = 64
_HIGHLIGHTS: Final = _SIDE * _SIDE // 50  # pixels


def brighten(crop: Rgb) -> tuple[Rgb, float]:
    """The crop, brighter where it is too dark, and the factor of its values, 1..8; 1: unchanged.

    `crop`: RGB uint8 [S, S, 3]. Values (sRGB), not light, are multiplied: 2.4 is some seven times
    the light.
    """
    small = cv2.resize(crop, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    values = small.max(axis=2).reshape(-1)  # so that no colour is clipped, and hues stay
    highlights = max(float(np.partition(values, -_HIGHLIGHTS)[-_HIGHLIGHTS]), 1.0)
    share = min(max((CLEAR - highlights) / (CLEAR - DIM), 0.0), 1.0)
    factor = min(1.0 + (WANTED / highlights - 1.0) * share, MOST_BRIGHTENED)
    if factor == 1.0:
        return crop, 1.0
    return np.asarray(cv2.convertScaleAbs(crop, alpha=factor), np.uint8), factor


def darken(picture: Rgb, factor: float) -> Rgb:
    """As dark as before `brighten` multiplied by `factor`: for putting it back into its frame."""
    if factor == 1.0:
        return picture
    return np.asarray(cv2.convertScaleAbs(picture, alpha=1.0 / factor), np.uint8)
