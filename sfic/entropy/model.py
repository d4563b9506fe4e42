"""The entropy model: says, step by step, with which frequency table each symbol is coded.

What belongs here: the order of coding, and the way from a law that the network says to a table.
The network and its arithmetic are `sfic.entropy.transformer`, the range coder `sfic.entropy.coder`.

A symbol's law depends on the rate, on the *decoded symbols* of the lower layers and of the earlier
steps of its own layer, and on nothing else; all arithmetic is on integers. So encoder and decoder
agree to the bit on any machine. Both walk the same steps:

    basic     basic     step 0: the rate alone; then all symbols so far
    middle    middle    basic, and all symbols so far
              coarse    basic and middle, and all cells so far
    enhanced  enhanced  basic and middle, and all symbols so far
              fine      all three vectors, all of coarse, and all cells so far

A vector (basic, middle, enhanced) is cut into tokens of 8 symbols; a step is a run of tokens. A
spatial code (coarse, fine) is cut into patches of 2x2 cells: one cell of each patch a time, in the
order upper left, lower right, upper right, lower left, so that the second half of the cells has all
its four neighbours before it; within a cell one group of channels a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sfic.entropy.coder import SymbolDecoder, SymbolEncoder
from sfic.entropy.tables import TableSet
from sfic.entropy.transformer import (
    ACTIVATION_MAX,
    SPATIAL,
    VECTORS,
    IntegerTransformer,
    Memory,
    limit,
)
from sfic.errors import BundleError, InvalidInput, PacketError

__all__ = ["GROUP", "PARTS", "QUADRANTS", "SPATIAL", "VECTORS", "EntropyModel", "LayerSymbols"]

Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp] | slice

GROUP: Final = 8
MEAN_LIMIT: Final = 8 * 64
INPUT_SHIFT: Final = 4
UNIT_MAX: Final = 2000
BASE_MAX: Final = 1 << 15
GAIN_SHIFT: Final = 7
SCALE_SHIFT: Final = 2
# (row, column) in its patch of the cell that a step codes.
QUADRANTS: Final = ((0, 0), (1, 1), (0, 1), (1, 0))
# The parts of the three layers in the order of coding.
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "basic": ("basic",),
    "middle": ("middle", "coarse"),
    "enhanced": ("enhanced", "fine"),
}


@dataclass(frozen=True)
class LayerSymbols:
    """Decoded symbols of a face so far: part name -> int32 [n], of a spatial code [C, S, S]."""

    parts: Mapping[str, Int32Array]

    def of_layer(self, layer: str) -> Int32Array:
        """All symbols of a layer as one flat array, as the check of its packet reads them."""
        return np.concatenate([self.parts[p].reshape(-1) for p in PARTS[layer]])


@dataclass(frozen=True)
class Step:
    """Symbols coded at once: places int [n] in the flattened part, and what to code them with."""

    part: str
    places: npt.NDArray[np.intp]
    offset: Int32Array
    table: Int32Array


@dataclass(frozen=True)
class _Group:
    """Channels of a spatial code that are coded at once: their cells' places and base laws."""

    number: int
    channels: npt.NDArray[np.intp]  # [k]
    before: npt.NDArray[np.intp]  # the channels of earlier groups
    places: npt.NDArray[np.intp]  # [steps, patches, k]
    base: FloatArray  # [rates, 2, steps, patches, k]


class EntropyModel:
    """Codes and decodes the symbols of each layer, given the layers below.

    Arrays: `size.*`: sizes of the parts. `base.*` int [9, 2, n]: mean (eighths of a step) and scale
    index of each symbol without context. `input.*` and `output.*` int [9, n], of a spatial code
    [9, C]: units of a symbol as an activation, and of a law as a mean. `steps.*`: tokens in each
    step of a vector. `groups.*` int [C]: the group of each channel of a spatial code. `net.*`: the
    transformer.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], tables: TableSet) -> None:
        """Use `from_arrays`."""
        self.tables = tables
        parts = [part for layer in PARTS.values() for part in layer]
        self.sizes = {part: tuple(int(x) for x in arrays[f"size.{part}"]) for part in parts}
        # All scaled and with the half of a rounding, so that `floor` alone is left to do.
        half = np.float32(0.5)
        self._base = {part: arrays[f"base.{part}"].astype(np.float32) + half for part in parts}
        units = {
            name: arrays[name].astype(np.float32)
            for part in parts
            for name in (f"input.{part}", f"output.{part}")
        }
        if max(float(np.abs(unit).max()) for unit in units.values()) > UNIT_MAX:
            raise BundleError(f"units of the entropy model are beyond {UNIT_MAX}")
        if max(float(np.abs(base).max()) for base in self._base.values()) > BASE_MAX:
            raise BundleError(f"laws of the entropy model are beyond {BASE_MAX}")
        self._input = {p: units[f"input.{p}"] * np.float32(0.5**INPUT_SHIFT) for p in parts}
        self._output = {p: units[f"output.{p}"] * np.float32(0.5**GAIN_SHIFT) for p in parts}
        self._counts = {part: [int(x) for x in arrays[f"steps.{part}"]] for part in VECTORS}
        self._first = {}  # number of a part's first token
        first = 0
        for part in VECTORS:
            self._first[part] = first
            first += sum(self._counts[part])
            if sum(self._counts[part]) * GROUP != self.sizes[part][0]:
                raise BundleError(f"steps of {part} do not cover its {self.sizes[part]} symbols")
        self._net = IntegerTransformer(arrays)
        sides = {self.sizes[part][1:] for part in SPATIAL}
        if len(sides) != 1 or 4 * len(arrays["net.patch"]) != math.prod(sides.pop()):
            raise BundleError("spatial codes and patches of the entropy model do not agree")
        self._cells: dict[str, npt.NDArray[np.intp]] = {}  # places [steps, patches, C] of a code
        self._groups: dict[str, list[_Group]] = {}
        for part in SPATIAL:
            c, s, _ = self.sizes[part]
            groups = arrays[f"groups.{part}"]
            count = int(groups.max()) + 1
            if groups.shape != (c,) or set(groups.tolist()) != set(range(count)):
                raise BundleError(f"groups of the {c} {part} channels are {groups.tolist()}")
            cells = np.arange(c * s * s).reshape(c, s, s)
            self._cells[part] = np.stack(
                [cells[:, y::2, x::2].reshape(c, -1).T for y, x in QUADRANTS]
            )
            order = np.argsort(groups, kind="stable")
            self._groups[part] = []
            for i in range(count):
                own, before = np.flatnonzero(groups == i), order[: int((groups < i).sum())]
                places = self._cells[part][..., own]
                self._groups[part].append(
                    _Group(i, own, before, places, self._base[part][:, :, places])
                )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], tables: TableSet) -> EntropyModel:
        """From the arrays of `models/entropy.npz`; BundleError when they are not a model."""
        try:
            return cls(arrays, tables)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise BundleError(f"entropy model: {error}") from error

    # -- what both directions share

    def _steps(
        self, layer: str, rate: int, known: Mapping[str, Int32Array], *, at_once: bool = False
    ) -> Iterator[Step]:
        """The steps of a layer in order; by the next, `known` has to hold the last one's symbols.

        Symbols of steps to come are never read. With `at_once`, `known` holds all symbols of the
        layer from the start, which is faster; the steps are the same.
        """
        if layer == "basic":
            for places, offset, table in self._basic_steps(rate, known["basic"][None]):
                yield Step("basic", places, offset[0], table[0])
            return
        _, spatial = _parts(layer)
        lower = VECTORS[: VECTORS.index(layer)]
        heard = [self._activations(part, rate, known[part]) for part in lower]
        memory = self._net.start(rate)
        tokens = np.concatenate(heard).reshape(-1, GROUP)
        self._net.remember(memory, tokens, 0, rate)
        base = self._base[layer][rate - 1]  # [2, n]
        counts = self._counts[layer]
        ends = list(accumulate(counts))
        for i, (count, end) in enumerate(zip(counts, ends, strict=True)):
            begin = end - count
            places = np.arange(begin * GROUP, end * GROUP)
            first = self._first[layer]
            u, v = self._net.vector_step(
                memory,
                f"around_{layer}{i}",
                np.concatenate(heard),
                slice(first + begin, first + end),
                rate,
            )
            gain = self._output[layer][rate - 1, places]
            yield Step(layer, places, *self._located(base[:, places], u, v, gain))
            own = self._activations(layer, rate, known[layer])[places]
            heard.append(own)
            if i + 1 < len(counts):
                tokens = own.reshape(-1, GROUP)
                self._net.remember(memory, tokens, self._first[layer] + begin, rate)
        steps = self._spatial_steps_at_once if at_once else self._spatial_steps
        yield from steps(spatial, rate, known, np.concatenate(heard))

    def _basic_steps(
        self, rate: int, symbols: Int32Array
    ) -> Iterator[tuple[npt.NDArray[np.intp], Int32Array, Int32Array]]:
        """The steps of the basic layer, of faces [B] side by side: places [k], offset, table.

        `symbols`: int32 [B, n]; by the next step it has to hold the last one's. `offset` and
        `table` are int32 [B, k], those of the first step [1, k].
        """
        layer = "basic"
        faces = len(symbols)
        memory = self._net.start(rate, faces=(faces,))
        base = self._base[layer][rate - 1]  # [2, n]
        counts = self._counts[layer]
        heard = np.empty((faces, 0), np.float32)
        for i, (count, end) in enumerate(zip(counts, accumulate(counts), strict=True)):
            begin = end - count
            places = np.arange(begin * GROUP, end * GROUP)
            gain = self._output[layer][rate - 1, places]
            u = v = np.zeros((1, len(places)), np.float32)
            if i:
                name = f"around_{layer}{i}"
                u, v = self._net.vector_step(memory, name, heard, slice(begin, end), rate)
            yield places, *self._located(base[:, places], u, v, gain)
            own = self._activations(layer, rate, symbols)[:, places]  # [B, k]
            heard = np.concatenate((heard, own), axis=1)
            if i + 1 < len(counts):
                tokens = own.reshape(faces, -1, GROUP)
                self._net.remember(memory, tokens, begin, rate)

    def _spatial_steps(
        self, part: str, rate: int, known: Mapping[str, Int32Array], heard: FloatArray
    ) -> Iterator[Step]:
        net, symbols = self._net, known[part].reshape(-1)
        memory, sums = self._spatial_start(part, rate, known, heard)
        for i in range(len(QUADRANTS)):
            at = slice(i, i + 1)
            u, v = (x[None] for x in net.spatial_step(part, memory, i, sums, rate))
            cell = np.zeros_like(u)  # [1, patches, C]
            for group in self._groups[part]:
                yield from self._cell_steps(part, group, at, rate, u, v, cell)
                values = symbols[group.places[at]]
                own = self._activations(part, rate, values, group.channels)
                cell[..., group.channels] = own
            net.hear(part, sums, i, cell[0])

    def _spatial_steps_at_once(
        self, part: str, rate: int, known: Mapping[str, Int32Array], heard: FloatArray
    ) -> Iterator[Step]:
        """As `_spatial_steps`, where all symbols are known: no law waits for a symbol."""
        net, every = self._net, slice(0, len(QUADRANTS))
        memory, sums = self._spatial_start(part, rate, known, heard)
        cells = self._all_cells(part, rate, known)
        for i, cell in enumerate(cells):
            net.hear(part, sums, i, cell)
        # One step a time here too: the arrays of all would no longer fit the caches.
        laws = [net.spatial_step(part, memory, i, sums, rate) for i in range(len(cells))]
        u, v = map(np.stack, zip(*laws, strict=True))
        coded = [
            self._cell_steps(part, group, every, rate, u, v, cells) for group in self._groups[part]
        ]
        for cell_of_each_group in zip(*coded, strict=True):
            yield from cell_of_each_group

    def _spatial_start(
        self, part: str, rate: int, known: Mapping[str, Int32Array], heard: FloatArray
    ) -> tuple[Memory, FloatArray]:
        """What a spatial code starts from: memory, and sums of the windows.

        `heard`: activations of the vectors before it.
        """
        net = self._net
        memory = net.start(rate, part)
        net.remember(memory, heard.reshape(-1, GROUP), 0, rate, part)
        below = SPATIAL[: SPATIAL.index(part)]
        cells = [cell for lower in below for cell in self._all_cells(lower, rate, known)]
        return memory, net.windows(part, cells)

    def _cell_steps(
        self,
        part: str,
        group: _Group,
        steps: slice,
        rate: int,
        u: FloatArray,
        v: FloatArray,
        cells: FloatArray,
    ) -> Iterator[Step]:
        """Steps of a group of channels; u, v: what the network says of all channels of cells.

        `cells`: activations of the channels known in these cells. All are [steps, patches, C].
        """
        own = group.channels
        law = u[..., own], v[..., own]
        if group.number:
            known = cells[..., group.before]
            law = self._net.channel_step(part, steps, group.number, known, *law)
        gain = self._output[part][rate - 1, own]
        offset, table = self._located(group.base[rate - 1, :, steps], *law, gain)
        for step in zip(group.places[steps], offset, table, strict=True):
            yield Step(part, *(x.reshape(-1) for x in step))

    def _all_cells(self, part: str, rate: int, known: Mapping[str, Int32Array]) -> FloatArray:
        """Activations [steps, patches, C] of a spatial code that is known."""
        return self._activations(part, rate, known[part].reshape(-1)[self._cells[part]])

    def _activations(
        self, part: str, rate: int, symbols: Int32Array, places: Places = slice(None)
    ) -> FloatArray:
        """Symbols [..., n] of these places (or channels) as inputs; integers within +-127."""
        x = limit(symbols.astype(np.float32), -ACTIVATION_MAX, ACTIVATION_MAX)
        x *= self._input[part][rate - 1, places]
        x += np.float32(0.5)
        np.floor(x, out=x)
        return limit(x, -ACTIVATION_MAX, ACTIVATION_MAX)

    def _located(
        self, base: FloatArray, u: FloatArray, v: FloatArray, gain: FloatArray
    ) -> tuple[Int32Array, Int32Array]:
        """Offset and table of each symbol from its law; base: [2, ...], the rest of one symbol."""
        mean, scale = u * gain, v * np.float32(0.5**SCALE_SHIFT)
        mean += base[0]
        scale += base[1]
        limit(np.floor(mean, out=mean), -MEAN_LIMIT, MEAN_LIMIT)
        limit(np.floor(scale, out=scale), 0, self.tables.scale_count - 1)
        return self.tables.locate(mean.astype(np.int32), scale.astype(np.int32))

    # -- coding

    def encode(self, layer: str, rate: int, symbols: LayerSymbols) -> bytes:
        """Payload of one layer; `symbols` holds its parts and those of all lower layers."""
        coder = SymbolEncoder(self.tables)
        for step in self._steps(layer, rate, symbols.parts, at_once=True):
            values = symbols.parts[step.part].reshape(-1)[step.places]
            coder.put(values - step.offset, step.table)
        return coder.finish()

    def bits(self, layer: str, rate: int, symbols: LayerSymbols) -> dict[str, npt.NDArray[Any]]:
        """What each symbol costs, float64 in the shape of each part of the layer."""
        costs = {part: np.zeros(self.sizes[part]) for part in _parts(layer)}
        for step in self._steps(layer, rate, symbols.parts, at_once=True):
            values = symbols.parts[step.part].reshape(-1)[step.places]
            cost = self.tables.bits(values - step.offset, step.table)
            costs[step.part].reshape(-1)[step.places] = cost
        return costs

    def laws(
        self, layer: str, rate: int, symbols: LayerSymbols
    ) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Mean and deviation, in steps, of each symbol's table, in the shape of each part.

        For those who look for better symbols; the tables have to name their scales.
        """
        scales = np.array(self.tables.scales, np.float32)
        fractions = self.tables.fractions
        found = {
            part: (np.zeros(self.sizes[part], np.float32), np.zeros(self.sizes[part], np.float32))
            for part in _parts(layer)
        }
        for step in self._steps(layer, rate, symbols.parts, at_once=True):
            scale, part = np.divmod(step.table, fractions)
            mean, deviation = found[step.part]
            mean.reshape(-1)[step.places] = step.offset + (part - fractions // 2) / fractions
            deviation.reshape(-1)[step.places] = scales[scale]
        return found

    def choose(
        self,
        layer: str,
        rate: int,
        ideal: Callable[[str, LayerSymbols], FloatArray],
        known: LayerSymbols,
        price: float,
    ) -> tuple[LayerSymbols, bytes]:
        """The symbols so far plus those of `layer`, chosen greedily step by step, and its payload.

        `ideal`: the values before rounding of a part, in quantiser steps, asked for when all that
        comes before the part is chosen. `price`: squared distance in steps that a bit is worth; 0
        rounds. A symbol is the nearest one, or the next one towards the law's mean, or the mean
        itself, where that costs less.
        """
        parts = dict(known.parts)
        for part in _parts(layer):
            parts[part] = np.zeros(self.sizes[part], np.int32)
        if not price:
            for part in _parts(layer):
                parts[part] = np.rint(ideal(part, LayerSymbols(parts))).astype(np.int32)
            return LayerSymbols(parts), self.encode(layer, rate, LayerSymbols(parts))
        coder = SymbolEncoder(self.tables)
        wanted: dict[str, FloatArray] = {}
        for step in self._steps(layer, rate, parts):
            if step.part not in wanted:
                wanted[step.part] = ideal(step.part, LayerSymbols(parts)).reshape(-1)
            value = wanted[step.part][step.places]
            nearest = np.rint(value).astype(np.int32)
            options = np.stack((nearest, nearest - np.sign(nearest - step.offset), step.offset))
            bits = self.tables.bits(options - step.offset, step.table[None])
            cost = np.square(options - value) + price * bits  # [3, n]
            best = np.take_along_axis(options, cost.argmin(axis=0)[None], axis=0)[0]
            coder.put(best - step.offset, step.table)
            parts[step.part].reshape(-1)[step.places] = best
        return LayerSymbols(parts), coder.finish()

    def decode_basic(
        self, rate: int, payloads: Sequence[bytes]
    ) -> list[LayerSymbols | PacketError]:
        """As `decode` of the basic layer, for many faces of one rate at once.

        The network runs once for all of them. A payload that is not one gives its error.
        """
        if not payloads:
            return []
        coders = [SymbolDecoder(payload, self.tables) for payload in payloads]
        symbols = np.zeros((len(payloads), *self.sizes["basic"]), np.int32)
        errors: dict[int, PacketError] = {}
        for places, offset, table in self._basic_steps(rate, symbols):
            shape = (len(coders), len(places))
            offsets, tables = np.broadcast_to(offset, shape), np.broadcast_to(table, shape)
            for i, coder in enumerate(coders):
                if i not in errors:
                    try:
                        symbols[i, places] = coder.get(tables[i]) + offsets[i]
                    except PacketError as error:
                        errors[i] = error
        for i, coder in enumerate(coders):
            if i not in errors:
                try:
                    coder.finish()
                except PacketError as error:
                    errors[i] = error
        return [errors.get(i) or LayerSymbols({"basic": symbols[i]}) for i in range(len(payloads))]

    def decode(self, layer: str, rate: int, payload: bytes, known: LayerSymbols) -> LayerSymbols:
        """The symbols so far plus those of `layer`; PacketError when the payload is not one."""
        coder = SymbolDecoder(payload, self.tables)
        parts = dict(known.parts)
        for part in _parts(layer):
            parts[part] = np.zeros(self.sizes[part], np.int32)
        for step in self._steps(layer, rate, parts):
            parts[step.part].reshape(-1)[step.places] = coder.get(step.table) + step.offset
        coder.finish()
        return LayerSymbols(parts)


def _parts(layer: str) -> tuple[str, ...]:
    if layer not in PARTS:
        raise InvalidInput(f"unknown layer {layer!r}")
    return PARTS[layer]
