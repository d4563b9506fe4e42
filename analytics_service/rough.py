"""Rough cosines: an int8 copy of embeddings, quick to scan, with a proven bound of its error.

Belongs here: the copy, the bound, and which rows it leaves in question. Does not belong here: the
filters, and the exact cosines of the rows in question (`analytics_service.search`).

docs/decisions/search-index.md says why 8 bits, and why NumKong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numkong
import numpy as np
from numpy.typing import NDArray

__all__ = ["RoughBlock", "Shortlist"]

_LARGEST: Final = 127
# Rows smaller than this in every component are all zero in 8 bits: their inverse has no float.
_SMALLEST: Final = 1e-30
# More than what the square of a length loses to numbers whose squares are no floats.
_UNDERFLOW: Final = 1e-30
_EPSILON: Final = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class _Codes:
    """Rows x [N, D] as 8-bit codes, x = scale * codes + rest."""

    codes: NDArray[np.int8]
    scale: float
    norm: float
    """Largest |x|."""
    error: float
    """Largest |rest|, as it was measured."""

    @staticmethod
    def of(rows: NDArray[np.float32]) -> _Codes:
        largest = max(float(rows.max()), -float(rows.min()))
        scale = largest / _LARGEST if largest > _SMALLEST else 1.0
        made = rows * np.float32(1.0 / scale)
        np.rint(made, out=made)
        codes = made.astype(np.int8)
        made *= np.float32(scale)
        np.subtract(rows, made, out=made)
        return _Codes(codes, scale, _largest_norm(rows), _largest_norm(made))


@dataclass(frozen=True)
class RoughBlock:
    """A block of embeddings in 8 bits, laid out for the processor at hand."""

    packed: numkong.PackedMatrix
    scale: float
    norm: float
    error: float

    @staticmethod
    def of(embeddings: NDArray[np.float32]) -> RoughBlock:
        """Packs finite embeddings, float32 [N, D]."""
        made = _Codes.of(embeddings)
        return RoughBlock(numkong.dots_pack(made.codes), made.scale, made.norm, made.error)

    @property
    def nbytes(self) -> int:
        """Memory of the block, in bytes."""
        return int(self.packed.nbytes)


class Shortlist:
    """Rows that can be on a page of the `limit` nearest, found block by block.

    `lowest` is the least cosine asked for, `after` that of the last row of the page before. A row
    is left out only when its rough cosine and the bound say that its float32 cosine, clipped to
    -1..1, is below the one, above the other, or below those of `limit` rows that surely come after
    the page before.
    """

    def __init__(
        self,
        example: NDArray[np.float32],
        limit: int,
        lowest: float = -1.0,
        after: float | None = None,
    ) -> None:
        self._example = _Codes.of(example[np.newaxis])
        self._limit = limit
        self._lowest = _clipped_from(lowest)
        self._after = np.inf if after is None else after
        # What the best rows after the page before have at least: at most `limit`, the least first.
        self._floors = np.empty(0)
        self._rows: list[NDArray[np.intp]] = []
        self._ceilings: list[NDArray[np.floating[Any]]] = []

    def bound(self, block: RoughBlock) -> float:
        """How far a rough cosine of the block can be from the float32 one.

        With x = x' + r and q = q' + s, where x' and q' are what the codes stand for,
        |x q - x' q'| = |r q + x' s| <= |r| |q| + |x'| |s|, by Cauchy and Schwarz. The last term is
        the rounding of a float32 product of D summands (Higham, Accuracy and Stability of Numerical
        Algorithms, 2002, section 3.1), and of the norms here, twice over.
        """
        example = self._example
        rounding = 4 * example.codes.size * _EPSILON
        return (
            block.error * example.norm
            + (block.norm + block.error) * example.error
            + rounding * block.norm * example.norm
        )

    def cosines(self, block: RoughBlock) -> NDArray[np.floating[Any]]:
        """The rough cosines of a block, [N]."""
        return self._dots(block) * (block.scale * self._example.scale)

    def scan(self, block: RoughBlock, first: int, wanted: NDArray[np.bool_]) -> None:
        """Looks at a block, whose first row is `first`, for those of its rows [N] wanted."""
        unit, bound = block.scale * self._example.scale, self.bound(block)
        dots = self._dots(block)
        near = dots >= _int32(math.floor, (self._lowest - bound) / unit)
        if self._after < 1.0:
            near &= dots <= _int32(math.ceil, (self._after + bound) / unit)
        near &= wanted
        rows = near.nonzero()[0]
        if not len(rows):
            return
        cosines = dots[rows] * unit
        ceilings = cosines + bound
        floors = np.concatenate((self._floors, cosines[ceilings < self._after] - bound))
        if len(floors) >= self._limit:
            floors = np.partition(floors, len(floors) - self._limit)[-self._limit :]
            self._lowest = max(self._lowest, _clipped_from(float(floors[0])))
        self._floors = floors
        possible = ceilings >= self._lowest
        self._rows.append(rows[possible] + first)
        self._ceilings.append(ceilings[possible])

    def rows(self) -> NDArray[np.intp]:
        """The rows in question so far, in the order of the blocks."""
        if not self._rows:
            return np.empty(0, np.intp)
        possible = np.concatenate(self._ceilings) >= self._lowest
        return np.concatenate(self._rows)[possible]

    def _dots(self, block: RoughBlock) -> NDArray[np.int32]:
        dots: NDArray[np.int32] = np.asarray(
            numkong.dots_packed(self._example.codes, block.packed)
        ).reshape(-1)
        return dots


def _largest_norm(rows: NDArray[np.float32]) -> float:
    return math.sqrt(float(np.einsum("ij,ij->i", rows, rows).max()) + _UNDERFLOW)


def _clipped_from(cosine: float) -> float:
    """What a cosine is before it is clipped, at least, if it is at least this one after."""
    return -np.inf if cosine <= -1.0 else min(cosine, 1.0)


def _int32(rounded: Callable[[float], int], value: float) -> int:
    """As an integer of 32 bits, also where it is out of their range."""
    return rounded(min(max(value, -(2.0**31)), 2.0**31 - 1.0))
