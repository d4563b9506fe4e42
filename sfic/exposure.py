"""Faces that a camera saw in too little light: made as bright as others before they are coded.

Why, and what it gains: docs/decisions/dim-light.md. Belongs here: which faces are too dark, and by
how much. A face is judged by the brightest fiftieth of its crop, highlights and background, which
hardly depend on the colour of a skin: of 1,500 well exposed faces of all groups, one in five
hundred is below `DIM`; of the same faces in an eighth of the light, all are.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["brighten"]

Rgb = npt.NDArray[np.uint8]

DIM: Final = 100.0  # of 255: crops whose highlights are below are made bright in full
CLEAR: Final = 125.0  # and those above not at all; between the two, by a share
WANTED: Final = 220.0  # of the highlights
MOST: Final = 8.0  # in less light there is little but noise
_SIDE: Final = 64
_HIGHLIGHTS: Final = _SIDE * _SIDE // 50  # pixels


def brighten(crop: Rgb) -> tuple[Rgb, float]:
    """The crop, brighter where it is too dark, and the factor of its values, 1..8; 1: unchanged.

    `crop`: RGB uint8 [S, S, 3]. Values, not light, are multiplied: 2.4 is some seven times the
    light.
    """
    small = cv2.resize(crop, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).reshape(-1)
    highlights = max(float(np.partition(grey, -_HIGHLIGHTS)[-_HIGHLIGHTS]), 1.0)
    share = min(max((CLEAR - highlights) / (CLEAR - DIM), 0.0), 1.0)
    factor = min(1.0 + (WANTED / highlights - 1.0) * share, MOST)
    if factor == 1.0:
        return crop, 1.0
    return np.asarray(cv2.convertScaleAbs(crop, alpha=factor), np.uint8), factor
