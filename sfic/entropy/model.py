"""The entropy model: integer networks that say, symbol by symbol, which frequency table to use.

A layer's means and scales are predicted from the *decoded symbols* of the lower layers and of the
parts of the same layer that came before, and from nothing else. All arithmetic is on integers, so
encoder and decoder agree to the bit on any machine. Networks are trained in `training/` with the
same roundings; the range coder itself is `sfic.entropy.coder`.

    basic      ------------------------------> basic vector
    basic, rate --> net --> mean, scale -----> middle vector
    basic, middle, rate --> net -------------> enhanced vector
    basic, middle, enhanced, rate --> net ---> summary of the face (one vector)
    summary, place, rate --> net ------------> first half of the cells of the spatial code
    + the four neighbours' symbols --> net --> second half of the cells (checkerboard)

Fixed point, written out because it is part of the format: a symbol enters as `4 * clip(s, -31, 31)`;
activations are integers 0..127 that stand for sixteenths, weights are int8 that stand for 1/64, so
a product is in 1/1024; a hidden unit is `clip((W x + b + 32) >> 6, 0, 127)` (an arithmetic shift:
rounds to nearest, halves up), an output `(W x + b + 64) >> 7`, in eighths: of a quantiser step for
means, of a scale index times 8, that is whole scale indices, for scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sfic.entropy.coder import SymbolDecoder, SymbolEncoder
from sfic.entropy.tables import TableSet
from sfic.errors import BundleError, InvalidInput

__all__ = ["EntropyModel", "IntegerNet", "LayerSymbols", "PARTS"]

Int32Array = npt.NDArray[np.int32]

SYMBOL_CLIP: Final = 31
SYMBOL_SHIFT: Final = 2
ACTIVATION_MAX: Final = 127
HIDDEN_SHIFT: Final = 6
OUTPUT_SHIFT: Final = 7
MEAN_LIMIT: Final = 8 * 64
RATE_COUNT: Final = 9
# The parts of the three layers in the order of coding.
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "basic": ("basic",),
    "middle": ("middle",),
    "enhanced": ("enhanced", "spatial"),
}


def _dense(weight: npt.NDArray[np.float32], x: npt.NDArray[np.float32]) -> Int32Array:
    """Exact integer product in float32: every sum stays below 2**24 (checked when loaded).

    weight: [out, in], x: [n, in], both integer-valued -> int32 [n, out].
    """
    product: npt.NDArray[np.float32] = x @ weight.T
    return product.astype(np.int32)


class IntegerNet:
    """One hidden layer, or none, in fixed point; biases depend on the rate.

    Weights are int8 [out, in]; biases int32 [rates, out].
    """

    def __init__(self, weights: list[npt.NDArray[np.int8]], biases: list[Int32Array]) -> None:
        """Take the integers; BundleError when a sum could leave what float32 holds exactly."""
        for weight in weights:
            if np.abs(weight.astype(np.int64)).sum(axis=1).max() * ACTIVATION_MAX >= 1 << 24:
                raise BundleError("entropy network: weights are too large to be exact")
        self.weights = [np.ascontiguousarray(w, dtype=np.float32) for w in weights]
        self.biases = [b.astype(np.int32) for b in biases]

    def __call__(self, x: Int32Array, rate: int) -> Int32Array:
        """x: int32 [n, in] activations, rate 1..9 -> int32 [n, out]."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            total = _dense(weight, x.astype(np.float32)) + bias[rate - 1]  # [n, out]
            if i == last:
                return (total + (1 << OUTPUT_SHIFT - 1)) >> OUTPUT_SHIFT
            x = np.clip((total + (1 << HIDDEN_SHIFT - 1)) >> HIDDEN_SHIFT, 0, ACTIVATION_MAX)
        raise BundleError("entropy network without layers")


def as_activations(symbols: npt.NDArray[Any]) -> Int32Array:
    """Symbols as network inputs: clipped and scaled, int32 of the same shape."""
    clipped = np.clip(symbols, -SYMBOL_CLIP, SYMBOL_CLIP).astype(np.int32)
    return clipped << SYMBOL_SHIFT


def checkerboard(size: int) -> npt.NDArray[np.bool_]:
    """[size * size] True for the cells coded first."""
    y, x = np.divmod(np.arange(size * size), size)
    return (x + y) % 2 == 0


def neighbour_inputs(code: Int32Array) -> Int32Array:
    """code: [C, S, S] activations -> [S * S, 4 C]: those of the cells above, below, left, right."""
    c, s, _ = code.shape
    padded = np.zeros((c, s + 2, s + 2), np.int32)
    padded[:, 1:-1, 1:-1] = code
    views = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    return np.stack(views).reshape(4 * c, s * s).T  # [S S, 4 C]


@dataclass(frozen=True)
class LayerSymbols:
    """Decoded symbols of a face so far: part name -> int32 array (spatial: [C, S, S])."""

    parts: Mapping[str, Int32Array]

    def of_layer(self, layer: str) -> Int32Array:
        """All symbols of a layer as one flat array, as the check of its packet reads them."""
        return np.concatenate([self.parts[p].reshape(-1) for p in PARTS[layer]])


class EntropyModel:
    """Codes and decodes the symbols of each layer, given the layers below.

    `tables`: the frequency tables. `nets`: middle, enhanced, summary, first, second. `base`: for
    each part the mean (eighths of a step) and the scale index of each symbol without context,
    int32 [rates, 2, n]. `sizes`: number of symbols of each part; spatial as (C, S, S).
    """

    def __init__(
        self,
        tables: TableSet,
        nets: Mapping[str, IntegerNet],
        base: Mapping[str, Int32Array],
        sizes: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Take the parts; all are plain integers."""
        self.tables = tables
        self.nets = nets
        self.base = base
        self.sizes = sizes
        c, s, _ = sizes["spatial"]
        self._first = checkerboard(s)
        self._channels, self._side = c, s

    # -- what both directions share

    def _place(self, means: Int32Array, scales: Int32Array) -> tuple[Int32Array, Int32Array]:
        """-> (offset, table index) of each symbol."""
        means = np.clip(means, -MEAN_LIMIT, MEAN_LIMIT)
        scales = np.clip(scales, 0, self.tables.scale_count - 1)
        return self.tables.locate(means, scales)

    def _vector_context(
        self, part: str, rate: int, known: Mapping[str, Int32Array]
    ) -> tuple[Int32Array, Int32Array]:
        base = self.base[part][rate - 1]  # [2, n]
        if part == "basic":
            return self._place(base[0], base[1])
        lower = ("basic",) if part == "middle" else ("basic", "middle")
        x = np.concatenate([as_activations(known[p]) for p in lower])[None]  # [1, L]
        out = self.nets[part](x, rate)[0].reshape(2, -1)  # [2, n]
        return self._place(base[0] + out[0], base[1] + out[1])

    def _spatial_context(
        self, rate: int, known: Mapping[str, Int32Array], first: Int32Array | None
    ) -> tuple[Int32Array, Int32Array]:
        """Contexts of the cells coded first (`first` None) or second, cell by cell, channels last.

        `first`: the spatial code with the cells decoded so far and zeros elsewhere, [C, S, S].
        """
        c, s = self._channels, self._side
        lower = [as_activations(known[p]) for p in ("basic", "middle", "enhanced")]
        summary = self.nets["summary"](np.concatenate(lower)[None], rate)  # [1, G]
        summary = np.clip(summary, 0, ACTIVATION_MAX)
        base = self.base["spatial"][rate - 1].reshape(2, c, s * s)  # [2, C, S S]
        rows = np.repeat(summary, s * s, axis=0)  # [S S, G]
        place = np.clip(base[1].T, 0, ACTIVATION_MAX)  # [S S, C]: usual scales tell the place
        x = np.concatenate((rows, place), axis=1)
        if first is not None:
            x = np.concatenate((x, neighbour_inputs(as_activations(first))), axis=1)
        cells = self._first if first is None else ~self._first
        net = self.nets["first" if first is None else "second"]
        out = net(x[cells].astype(np.int32), rate).reshape(-1, 2, c)  # [n, 2, C]
        own = base[:, :, cells].transpose(2, 0, 1) + out  # [n, 2, C]
        return self._place(own[:, 0].reshape(-1), own[:, 1].reshape(-1))

    # -- coding

    def encode(self, layer: str, rate: int, symbols: LayerSymbols) -> bytes:
        """Payload of one layer; `symbols` holds its parts and those of all lower layers."""
        coder = SymbolEncoder(self.tables)
        for values, offset, table in self._walk(layer, rate, symbols):
            coder.put(values - offset, table)
        return coder.finish()

    def bits(self, layer: str, rate: int, symbols: LayerSymbols) -> dict[str, npt.NDArray[Any]]:
        """What each symbol costs, float64 in the shape of each part of the layer."""
        costs: dict[str, npt.NDArray[Any]] = {}
        pieces = [
            self.tables.bits(values - offset, table)
            for values, offset, table in self._walk(layer, rate, symbols)
        ]
        costs[layer] = pieces[0]
        if layer == "enhanced":
            c, s = self._channels, self._side
            spatial = np.empty((s * s, c))
            spatial[self._first] = pieces[1].reshape(-1, c)
            spatial[~self._first] = pieces[2].reshape(-1, c)
            costs["spatial"] = spatial.T.reshape(c, s, s)
        return costs

    def _walk(
        self, layer: str, rate: int, symbols: LayerSymbols
    ) -> list[tuple[Int32Array, Int32Array, Int32Array]]:
        """Symbols, offsets and tables of each piece of a layer whose symbols are known."""
        if layer not in PARTS:
            raise InvalidInput(f"unknown layer {layer!r}")
        known = symbols.parts
        walk = [(known[layer], *self._vector_context(layer, rate, known))]
        if layer == "enhanced":
            code = known["spatial"]  # [C, S, S]
            flat = code.reshape(self._channels, -1).T  # [S S, C]
            walk.append((flat[self._first].reshape(-1), *self._spatial_context(rate, known, None)))
            half = np.where(self._first.reshape(1, self._side, self._side), code, 0)
            second = self._spatial_context(rate, known, half.astype(np.int32))
            walk.append((flat[~self._first].reshape(-1), *second))
        return walk

    def decode(self, layer: str, rate: int, payload: bytes, known: LayerSymbols) -> LayerSymbols:
        """The symbols so far plus those of `layer`; PacketError when the payload is not one."""
        coder = SymbolDecoder(payload, self.tables)
        parts = dict(known.parts)
        offset, table = self._vector_context(layer, rate, parts)
        parts[layer] = coder.get(table) + offset
        if layer == "enhanced":
            c, s = self._channels, self._side
            flat = np.zeros((s * s, c), np.int32)
            offset, table = self._spatial_context(rate, parts, None)
            flat[self._first] = (coder.get(table) + offset).reshape(-1, c)
            half = np.ascontiguousarray(flat.T).reshape(c, s, s)
            offset, table = self._spatial_context(rate, parts, half)
            flat[~self._first] = (coder.get(table) + offset).reshape(-1, c)
            parts["spatial"] = np.ascontiguousarray(flat.T).reshape(c, s, s)
        coder.finish()
        return LayerSymbols(parts)

    # -- files

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], tables: TableSet) -> EntropyModel:
        """From the arrays of `models/entropy.npz`; BundleError when one is missing."""
        try:
            nets: dict[str, IntegerNet] = {}
            for name in ("middle", "enhanced", "summary", "first", "second"):
                count = int(arrays[f"{name}.layers"])
                weights = [arrays[f"{name}.weight{i}"] for i in range(count)]
                biases = [arrays[f"{name}.bias{i}"] for i in range(count)]
                nets[name] = IntegerNet(weights, biases)
            sizes = {
                part: tuple(int(x) for x in arrays[f"size.{part}"])
                for parts in PARTS.values()
                for part in parts
            }
            base = {part: arrays[f"base.{part}"].astype(np.int32) for part in sizes}
        except KeyError as error:
            raise BundleError(f"entropy model lacks {error}") from error
        return cls(tables, nets, base, sizes)
