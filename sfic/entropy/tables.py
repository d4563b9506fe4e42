"""Frequency tables of the range coder: built once with floats, then frozen as integers.

A table holds, for residuals -RADIUS..RADIUS and two escapes, integer frequencies that sum to
2**PRECISION. At run time only these integers are read. A family of tables is indexed by (scale,
fraction of the mean): a symbol x with predicted mean m, an integer in 1/fractions of a quantiser
step, is coded as the residual x - round(m) with the table of the fraction that rounding left over.

Columns are ordered 0, -1, 1, -2, 2, ... -RADIUS, RADIUS, escape below, escape above: so a run of
zeros is the lowest code word of all, and costs no byte at the end of a payload.

Residuals beyond RADIUS, up to +-MAX_SYMBOL, follow an escape as Exp-Golomb codes;
`sfic.entropy.coder` writes them, this module says what they cost.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sfic.errors import BundleError, InvalidInput

__all__ = [
    "ALPHABET",
    "ESCAPE_ORDER",
    "MAX_SYMBOL",
    "NEAR",
    "PRECISION",
    "RADIUS",
    "TOTAL",
    "TableSet",
    "default_scales",
    "escape_frequencies",
    "gaussian_tables",
    "laplace_tables",
    "split_escape",
]

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float64]
Distribution = Callable[[FloatArray, float], FloatArray]

PRECISION: Final = 24
TOTAL: Final = 1 << PRECISION
RADIUS: Final = 126
ALPHABET: Final = 2 * RADIUS + 3
ESCAPE_BELOW: Final = ALPHABET - 2
ESCAPE_ABOVE: Final = ALPHABET - 1
NEAR: Final = 16
MAX_SYMBOL: Final = 1 << 20
ESCAPE_ORDER: Final = 4
ESCAPE_PREFIXES: Final = 16

GAUSSIAN_SHARE: Final = 0.75
TAIL_SHARE: Final = 2.0**-10
TAIL_WIDTH: Final = 4.0


def escape_frequencies() -> npt.NDArray[np.int64]:
    """Frequencies [ESCAPE_PREFIXES] of the Exp-Golomb prefix; they sum to TOTAL."""
    freqs = np.array([(TOTAL >> 2) * 3**k >> 2 * k for k in range(ESCAPE_PREFIXES)], dtype=np.int64)
    freqs[-1] += TOTAL - freqs.sum()
    return freqs


def split_escape(excess: IntArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Prefix k and k + ESCAPE_ORDER bits of residuals that lie `excess` >= 0 beyond RADIUS + 1."""
    shifted = excess.astype(np.int64) + (1 << ESCAPE_ORDER)
    prefix = np.frexp(shifted.astype(np.float64))[1] - 1 - ESCAPE_ORDER
    low = shifted - (np.int64(1) << (prefix + ESCAPE_ORDER).astype(np.int64))
    return prefix.astype(np.int32), low.astype(np.int32)


class TableSet:
    """Integer frequency tables, and what symbols cost by them.

    `freqs`: uint32 [T, ALPHABET], all >= 1, each row sums to 2**PRECISION; T = scales x fractions.
    `fractions`: in how many parts of a quantiser step means are given (even, or 1).
    `scales`: the float scales that the rows were built for, ascending; for training and the
    curious.
    """

    def __init__(
        self, freqs: npt.ArrayLike, *, fractions: int = 1, scales: Sequence[float] = ()
    ) -> None:
        """Take and check the integers; BundleError when they are not tables."""
        table = np.asarray(freqs)
        if table.ndim != 2 or table.shape[1] != ALPHABET or table.dtype.kind not in "iu":
            raise BundleError(
                f"frequency tables are integers [T, {ALPHABET}], not {table.dtype} {table.shape}"
            )
        wide = table.astype(np.int64)
        if not wide.size or wide.min() < 1 or np.any(wide.sum(axis=1) != TOTAL):
            raise BundleError(f"frequencies have to be positive and sum to {TOTAL} in each row")
        if fractions < 1 or (fractions > 1 and fractions % 2) or len(wide) % fractions:
            raise BundleError(f"{len(wide)} tables cannot hold {fractions} fractions of the mean")
        if scales and len(scales) * fractions != len(wide):
            raise BundleError(f"{len(scales)} scales do not fit {len(wide)} tables")
        self.freqs: npt.NDArray[np.uint32] = wide.astype(np.uint32)  # [T, A]
        self.fractions = fractions
        self.scales = tuple(float(s) for s in scales)
        below = wide.cumsum(axis=1) - wide
        self.below: npt.NDArray[np.uint32] = below.astype(np.uint32)  # [T, A], sums of `freqs`
        # constriction adds 1 to each weight, so these, whole numbers that sum to 2**24 - A, give
        # exactly `freqs` (tested); float32 holds them without loss.
        self.weights: npt.NDArray[np.float32] = (wide - 1).astype(np.float32)  # [T, A]
        # The same with all columns from NEAR on as one: [T, NEAR + 1].
        self.near = np.column_stack((wide[:, :NEAR], TOTAL - below[:, NEAR])).astype(np.float32) - 1
        self._bits: FloatArray = PRECISION - np.log2(wide.astype(np.float64))  # [T, A]
        self._prefix_bits: FloatArray = PRECISION - np.log2(escape_frequencies().astype(np.float64))

    def __len__(self) -> int:
        """Number of tables."""
        return len(self.freqs)

    @property
    def scale_count(self) -> int:
        """Number of scale indices."""
        return len(self.freqs) // self.fractions

    def scale_index(self, scale: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Index of the nearest scale by ratio, of the shape of `scale`; for training (floats)."""
        if not self.scales:
            raise InvalidInput("these tables name no scales")
        logs = np.log(np.asarray(self.scales))
        wanted = np.log(np.clip(np.asarray(scale, dtype=np.float64), 1e-9, None))
        return np.searchsorted((logs[1:] + logs[:-1]) / 2, wanted).astype(np.int32)

    def locate(
        self, mean: IntArray, scale_index: IntArray
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Integer means (in 1/fractions of a step) and scale indices to (offset, table_index).

        The symbol x is coded as the residual x - offset with table_index; halves round up. Integers
        only. InvalidInput when a scale index is out of range or a mean beyond +-MAX_SYMBOL steps.
        """
        means, scales = np.asarray(mean), np.asarray(scale_index)
        if means.size and max(-int(means.min()), int(means.max())) > MAX_SYMBOL * self.fractions:
            raise InvalidInput(f"a mean is beyond +-{MAX_SYMBOL} quantiser steps")
        if scales.size and not 0 <= int(scales.min()) <= int(scales.max()) < self.scale_count:
            raise InvalidInput(f"a scale index is not in 0..{self.scale_count - 1}")
        shifted = means.astype(np.int32) + np.int32(self.fractions // 2)
        offset = shifted // np.int32(self.fractions)
        part = shifted - offset * np.int32(self.fractions)
        return offset, scales.astype(np.int32) * np.int32(self.fractions) + part

    def rows(self, table_index: IntArray) -> npt.NDArray[np.intp]:
        """`table_index` as checked row numbers [n]; InvalidInput when one is out of range."""
        rows = np.asarray(table_index)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise InvalidInput(f"table indices are integers [n], not {rows.dtype} {rows.shape}")
        if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise InvalidInput(f"a table index is not in 0..{len(self) - 1}")
        return rows.astype(np.intp)

    @staticmethod
    def columns(symbols: IntArray) -> npt.NDArray[np.int32]:
        """Column of each residual, of the same shape; InvalidInput beyond +-MAX_SYMBOL."""
        values = np.asarray(symbols)
        if values.dtype.kind not in "iu":
            raise InvalidInput(f"symbols are integers, not {values.dtype}")
        farthest = max(-int(values.min()), int(values.max())) if values.size else 0
        if farthest > MAX_SYMBOL:
            raise InvalidInput(f"a symbol is beyond +-{MAX_SYMBOL} quantiser steps")
        values = values.astype(np.int32)
        column = np.abs(values)
        column += column
        column -= values < 0
        if farthest > RADIUS:
            column[values < -RADIUS] = ESCAPE_BELOW
            column[values > RADIUS] = ESCAPE_ABOVE
        return column

    def bits(self, symbols: IntArray, table_index: IntArray) -> FloatArray:
        """What each residual costs in bits, escapes included; both broadcast against each other."""
        values, rows = np.broadcast_arrays(np.asarray(symbols), np.asarray(table_index))
        flat_rows = self.rows(rows.reshape(-1))
        flat = values.reshape(-1)
        cost: FloatArray = self._bits[flat_rows, self.columns(flat)]
        far = np.abs(flat.astype(np.int64)) - RADIUS - 1
        escaped = far >= 0
        if escaped.any():
            prefix, _ = split_escape(far[escaped])
            cost[escaped] += self._prefix_bits[prefix] + prefix + ESCAPE_ORDER
        return cost.reshape(values.shape)

    def save(self, path: Path) -> None:
        """Write the integers to an .npz file."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                freqs=self.freqs,
                fractions=np.array(self.fractions),
                scales=np.array(self.scales, dtype=np.float64),
            )

    @classmethod
    def load(cls, path: Path) -> TableSet:
        """Read what `save` wrote; BundleError when it cannot be read or is not a set of tables."""
        try:
            with np.load(path, allow_pickle=False) as file:
                freqs, fractions, scales = file["freqs"], int(file["fractions"]), file["scales"]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"cannot read frequency tables from {path}: {error}") from error
        return cls(freqs, fractions=fractions, scales=[float(s) for s in scales])


def default_scales(count: int = 64, low: float = 0.05, high: float = 64.0) -> list[float]:
    """`count` scales from `low` to `high` quantiser steps, evenly spaced by ratio."""
    return [float(s) for s in np.geomspace(low, high, count)]


def _gaussian(x: FloatArray, deviation: float) -> FloatArray:
    erfc = np.frompyfunc(math.erfc, 1, 1)
    return np.asarray(0.5 * erfc(-x / (deviation * math.sqrt(2))), dtype=np.float64)


def _logistic(x: FloatArray, deviation: float) -> FloatArray:
    return 0.5 + 0.5 * np.tanh(x * math.pi / (2 * math.sqrt(3) * deviation))


def _laplace(x: FloatArray, deviation: float) -> FloatArray:
    tail = 0.5 * np.exp(-np.abs(x) * math.sqrt(2) / deviation)
    return np.where(x < 0, tail, 1 - tail)


def _with_tail(core: Distribution) -> Distribution:
    """`core` with a share of a wide logistic, so that an outlier costs tens of bits at most."""

    def mixed(x: FloatArray, deviation: float) -> FloatArray:
        tail = _logistic(x, max(1.0, TAIL_WIDTH * deviation))
        return (1 - TAIL_SHARE) * core(x, deviation) + TAIL_SHARE * tail

    return mixed


def _freeze(probabilities: FloatArray) -> npt.NDArray[np.int64]:
    """Probabilities [A] to frequencies >= 1 with sum TOTAL; the likeliest takes the rounding."""
    freqs: npt.NDArray[np.int64] = 1 + np.floor(probabilities * (TOTAL - ALPHABET)).astype(np.int64)
    freqs[np.argmax(freqs)] += TOTAL - freqs.sum()
    return freqs


def _build(scales: Sequence[float], fractions: int, distribution: Distribution) -> TableSet:
    if not scales or min(scales) <= 0 or list(scales) != sorted(scales):
        raise InvalidInput("scales have to be positive and ascending")
    edges: FloatArray = np.arange(-RADIUS, RADIUS + 2, dtype=np.float64) - 0.5
    order = TableSet.columns(np.arange(-RADIUS, RADIUS + 1))
    rows = []
    for scale in scales:
        for part in range(fractions):
            mean = (part - fractions // 2) / fractions
            below = distribution(edges - mean, scale)
            probabilities = np.empty(ALPHABET)
            probabilities[order] = np.clip(np.diff(below), 0, None)
            probabilities[ESCAPE_BELOW] = below[0]
            probabilities[ESCAPE_ABOVE] = 1 - below[-1]
            rows.append(_freeze(probabilities / probabilities.sum()))
    return TableSet(np.stack(rows), fractions=fractions, scales=scales)


def gaussian_tables(
    scales: Sequence[float], fractions: int = 8, *, gaussian_share: float = GAUSSIAN_SHARE
) -> TableSet:
    """Tables of a Gaussian mixed with a logistic, both of standard deviation `scale` steps.

    The cumulative distribution is (1 - TAIL_SHARE) * (g * Gaussian + (1 - g) * logistic) +
    TAIL_SHARE * logistic of deviation max(1, TAIL_WIDTH * scale), with g = `gaussian_share`;
    training that wants the likelihood in floats uses the same. InvalidInput unless scales are
    positive and ascending.
    """

    def core(x: FloatArray, deviation: float) -> FloatArray:
        normal, heavy = _gaussian(x, deviation), _logistic(x, deviation)
        return gaussian_share * normal + (1 - gaussian_share) * heavy

    return _build(scales, fractions, _with_tail(core))


def laplace_tables(scales: Sequence[float], fractions: int = 8) -> TableSet:
    """Tables of a Laplace distribution of standard deviation `scale` steps, with the same tail."""
    return _build(scales, fractions, _with_tail(_laplace))
