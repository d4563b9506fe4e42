"""The integer transformer: from symbols decoded so far to the laws of the symbols of a next step.

What belongs here: the network and its arithmetic, which is part of the format. Which symbols make
a step, and how a law becomes a frequency table, is `sfic.entropy.model`; training, in float with
the same roundings, is in `training/`.

    rate --------------------> start token --+
    known tokens of 8 symbols --> embedding --+--> memory: keys and values
                                                       |
    place, rate, linear part of the window --> x --> blocks: x += attention(norm(x), memory)
                                                            x += hidden(norm(x))     --> laws

Tokens of the three vectors ask a memory of all tokens of earlier steps. Tokens of a spatial code
are patches of 2x2 cells, and start from the known cells of the 3x3 patches around them, as they are
and as magnitudes; they ask a memory of all vectors so far, and each other. A linear map from the
known symbols to the laws (in the vectors: to the means) goes around the blocks, and one from the
channels of a cell that are known to those that are not.

The arithmetic. All numbers are integers, held in float32, which is exact as long as no sum reaches
2**23 in magnitude; weights that could are refused when loaded. So any order of summation, any
number of threads and any library gives the same bits. `floor` goes to minus infinity.

    dense(x; W, b, k)   floor((W x + b) / 2**k + 1/2), W int8, then clipped as stated
    activation          clip(floor((symbol * step[rate] + 8) / 16), -127, 127), symbols clipped to
                        +-127 before
    embedding           dense(activations, k = 7), clipped to 0..127
    norm(x)             m = max(sum |x|, 96); r = floor((2**21 + 1/2) / m);
                        clip(floor(x r / 2**10 + 1/2), -127, 127): mean magnitude about 2**11 / 96
    query, key, value   dense(k = 7), clipped to +-127
    attention           s = floor(q.k / 64 + 1/2); t = min(max s - s, 128); e = EXP[t], the integers
                        of the file, about 127 * 2**(-t / 16) and 0 at 128;
                        o = floor((4 sum e v + sum e) / (2 sum e)): twice the mean of v, rounded
    residual            x + dense(o, k = 8), then x + dense(h, k = 7), clipped to +-2047
    hidden h            dense(norm(x), k = 7), clipped to 0..255
    law of a symbol     u, v = dense(norm(x), k = 7), to which dense(known activations, k = 7) is
                        added (in the vectors to u alone); u clipped to +-4095; in the spatial
                        codes then u += du, v += dv with du, dv = dense(a, |a| of the
                        cell's known channels, k = 7), u clipped again; mean = base +
                        floor((u * gain[rate] + 64) / 128) in eighths of a step;
                        scale index = base + floor((v + 2) / 4)

Divisions are of integers below 2**24 by smaller ones, whose float32 quotient, correctly rounded as
IEEE 754 asks, never reaches an integer that the exact one stays below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sfic.errors import BundleError

__all__ = [
    "ACTIVATION_MAX",
    "EXACT",
    "SPATIAL",
    "VECTORS",
    "IntegerTransformer",
    "Memory",
    "patch_windows",
]

FloatArray = npt.NDArray[np.float32]

EXACT: Final = 1 << 23
ACTIVATION_MAX: Final = 127
HIDDEN_MAX: Final = 255
VALUE_MEAN_MAX: Final = 254
RESIDUAL_MAX: Final = 2047
LAW_MAX: Final = 4095
EXP_STEPS: Final = 128
# Differences of scores then fit 16 bits.
HEAD_WIDTH_MAX: Final = 64
NORM_NUMERATOR: Final = (1 << 21) + 0.5
NORM_SHIFT: Final = 10
SCORE_SHIFT: Final = 6
SHIFT: Final = 7
VALUE_SHIFT: Final = 8
VECTORS: Final = ("basic", "middle", "enhanced")
SPATIAL: Final = ("coarse", "fine")
# Below this share of live channels, leaving out the others costs less than it saves.
LIVE_SHARE: Final = 0.75
# Patches along a side of the window around one.
WINDOW: Final = 3


def _floor(total: FloatArray, low: float, high: float) -> FloatArray:
    """floor(total), clipped; in place."""
    np.floor(total, out=total)
    return limit(total, low, high)


def limit(x: FloatArray, low: float, high: float) -> FloatArray:
    """In place; two plain calls take a quarter of the time of `np.clip` on small arrays."""
    np.maximum(x, np.float32(low), out=x)
    np.minimum(x, np.float32(high), out=x)
    return x


class _Dense:
    """A matrix product, rounded and clipped; weight int8 [..., out, in], bias int32 [..., out].

    Kept as W / 2**k and b / 2**k + 1/2, which float32 holds as exactly: only `floor` is left to do.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        name: str,
        limit: int,
        shift: int,
        low: int,
        high: int,
    ) -> None:
        weight = arrays[f"{name}.weight"].astype(np.int64)
        bias = arrays[f"{name}.bias"].astype(np.int64)
        if (np.abs(weight).sum(axis=-1) * limit + np.abs(bias)).max(initial=0) >= EXACT:
            raise BundleError(f"entropy transformer: sums of {name} are too large to be exact")
        unit = np.float32(0.5**shift)
        self.weight = np.ascontiguousarray(weight.swapaxes(-1, -2), dtype=np.float32) * unit
        self.bias = bias.astype(np.float32) * unit + np.float32(0.5)
        self.low, self.high = low, high

    def __call__(self, x: FloatArray) -> FloatArray:
        """x: [..., in] -> [..., out]."""
        total: FloatArray = x @ self.weight
        total += self.bias
        return _floor(total, self.low, self.high)

    def each(self, x: FloatArray, places: slice) -> FloatArray:
        """Row i of x [..., n, in] by the matrix of place i -> [..., n, out]."""
        return _floor(self.sums(x, places), self.low, self.high)

    def sums(self, x: FloatArray, places: slice) -> FloatArray:
        """As `each`, before rounding down and clipping."""
        # One product for each place, of the rows of all faces: [n, faces, in] @ [n, in, out].
        rows = np.moveaxis(x.reshape(-1, *x.shape[-2:]), 1, 0)
        total = np.moveaxis(np.matmul(rows, self.weight[places]), 0, 1)
        sums: FloatArray = total.reshape(*x.shape[:-1], -1) + self.bias[places]
        return sums


class Memory:
    """Keys and values of the tokens known so far, for each block: [..., heads, tokens, width].

    The leading axes, where there are any, are faces that are coded side by side.
    """

    def __init__(self, blocks: int) -> None:
        """Start empty."""
        self.keys: list[list[FloatArray]] = [[] for _ in range(blocks)]
        self.values: list[list[FloatArray]] = [[] for _ in range(blocks)]

    def read(self, block: int) -> tuple[FloatArray, FloatArray]:
        """Keys and values of all tokens, joined once."""
        for pieces in (self.keys[block], self.values[block]):
            if len(pieces) > 1:
                pieces[:] = [np.concatenate(pieces, axis=-2)]
        return self.keys[block][0], self.values[block][0]


class _Block:
    """Attention and a hidden layer, each added to the tokens."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], name: str, heads: int) -> None:
        top = ACTIVATION_MAX
        self.query = _Dense(arrays, f"{name}.query", top, SHIFT, -top, top)
        self.key_value = _Dense(arrays, f"{name}.key_value", top, SHIFT, -top, top)
        self.out = _Dense(
            arrays, f"{name}.out", VALUE_MEAN_MAX, VALUE_SHIFT, -RESIDUAL_MAX, RESIDUAL_MAX
        )
        self.hidden = _Dense(arrays, f"{name}.hidden", top, SHIFT, 0, HIDDEN_MAX)
        self.down = _Dense(arrays, f"{name}.down", HIDDEN_MAX, SHIFT, -RESIDUAL_MAX, RESIDUAL_MAX)
        self.heads = heads

    def split(self, x: FloatArray) -> FloatArray:
        """[..., n, D] -> [..., heads, n, D / heads]."""
        return x.reshape(*x.shape[:-1], self.heads, -1).swapaxes(-3, -2)

    def keys_values(self, tokens: FloatArray) -> tuple[FloatArray, FloatArray]:
        """tokens: [..., n, D] -> keys and values [..., heads, n, D / heads]."""
        both = self.key_value(tokens)
        width = both.shape[-1] // 2
        return self.split(both[..., :width]), self.split(both[..., width:])


class IntegerTransformer:
    """The network of `models/entropy.npz`; see the module for its arithmetic.

    Of the vectors it says u and v of the symbols of a step; of a spatial code those of one cell of
    each patch.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """From the arrays named `net.*`; BundleError when one is missing or too large."""
        try:
            self._read(arrays)
        except (KeyError, ValueError, IndexError) as error:
            raise BundleError(f"entropy transformer: {error}") from error

    def _read(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.width, heads, vector_blocks, spatial_blocks = (int(x) for x in arrays["net.shape"])
        top = ACTIVATION_MAX
        counts = {"vector": vector_blocks, **dict.fromkeys(SPATIAL, spatial_blocks)}
        self._blocks = {
            kind: [_Block(arrays, f"net.{kind}{i}", heads) for i in range(count)]
            for kind, count in counts.items()
        }
        self._embed = _Dense(arrays, "net.embed", top, SHIFT, 0, top)
        unit = np.float32(0.5**SHIFT)
        self._embed_rate = arrays["net.embed_rate"].astype(np.float32) * unit  # [rates, D]
        self._start = arrays["net.start"].astype(np.float32)  # [rates, D]
        self._place = arrays["net.place"].astype(np.float32)  # [tokens, D]
        self._rate = arrays["net.rate"].astype(np.float32)  # [rates, D]
        self._patch = arrays["net.patch"].astype(np.float32)  # [patches, D]
        self._patch_rate = arrays["net.patch_rate"].astype(np.float32)  # [stages, rates, D]
        self._head = _Dense(arrays, "net.head", top, SHIFT, -LAW_MAX, LAW_MAX)

        def law(name: str) -> _Dense:
            return _Dense(arrays, f"net.{name}", top, SHIFT, -LAW_MAX, LAW_MAX)

        def window(name: str) -> _Dense:
            return _Dense(arrays, f"net.{name}", top, SHIFT, -RESIDUAL_MAX, RESIDUAL_MAX)

        stages = len(self._patch_rate)
        self._steps = stages // len(SPATIAL)  # of one code
        self._patch_head = [law(f"patch_head{i}") for i in range(stages)]
        self._around = {
            name.split(".")[1]: law(name[4:-7])
            for name in arrays
            if name.startswith(tuple(f"net.around_{part}" for part in VECTORS))
            and name.endswith(".weight")
        }
        self._channels, self._windows = {}, {}
        lower = 0
        for first, part in zip(range(0, stages, self._steps), SPATIAL, strict=True):
            own = range(first, first + self._steps)
            groups = arrays[f"groups.{part}"]
            self._channels[part] = _between([law(f"channels{i}") for i in own], groups)
            maps = [(window(f"window{i}"), law(f"around_spatial{i}")) if i else None for i in own]
            count = len(groups)
            self._windows[part] = _Windows(maps, lower, count, len(self._patch), self.width)
            lower += self._steps * count
        self._exp = arrays["net.exp"].astype(np.float32)  # [129]
        if self._exp.shape != (EXP_STEPS + 1,) or self._exp[0] != ACTIVATION_MAX:
            raise BundleError("entropy transformer: a table of exponents has 129 entries from 127")
        if self._exp.min() < 0 or self._exp.max() > ACTIVATION_MAX:
            raise BundleError("entropy transformer: exponents have to be 0..127")
        if heads < 1 or self.width % heads or self.width // heads > HEAD_WIDTH_MAX:
            raise BundleError(f"entropy transformer: {heads} heads do not share {self.width}")
        most = EXACT // (4 * ACTIVATION_MAX**2 + ACTIVATION_MAX)
        if 1 + len(self._place) + len(self._patch) > most:
            raise BundleError("entropy transformer: too many tokens to be exact")

    # -- arithmetic

    def _norm(self, x: FloatArray) -> FloatArray:
        total = np.abs(x) @ np.ones((x.shape[-1], 1), np.float32)  # [..., n, 1]
        np.maximum(total, np.float32(self.width), out=total)
        ratio = np.floor(np.float32(NORM_NUMERATOR) / total)
        ratio *= np.float32(0.5**NORM_SHIFT)
        y: FloatArray = x * ratio
        y += np.float32(0.5)
        return _floor(y, -ACTIVATION_MAX, ACTIVATION_MAX)

    def _attend(self, q: FloatArray, keys: FloatArray, values: FloatArray) -> FloatArray:
        """q: [..., heads, n, d], keys and values [..., heads, L, d] -> [..., n, D]."""
        # Keys lie along the last axis but one: numpy finds maxima over the last one slowly.
        score = keys @ (q * np.float32(0.5**SCORE_SHIFT)).swapaxes(-1, -2)  # [..., heads, L, n]
        score += np.float32(0.5)
        np.floor(score, out=score)
        np.subtract(score.max(axis=-2, keepdims=True), score, out=score)
        weight = self._exp.take(score.astype(np.uint16), mode="clip")
        total = (np.ones((1, weight.shape[-2]), np.float32) @ weight).swapaxes(-1, -2)
        mean = weight.swapaxes(-1, -2) @ values  # [..., heads, n, d]
        mean *= np.float32(4)
        mean += total
        mean /= total + total
        np.floor(mean, out=mean)
        mean = np.ascontiguousarray(mean.swapaxes(-3, -2))  # [..., n, heads, d]
        return mean.reshape(*mean.shape[:-2], -1)

    def _through(self, block: _Block, x: FloatArray, memory: Memory, at: int, own: bool) -> None:
        """One block; x [..., n, D] is changed in place. `own`: the tokens also ask each other."""
        y = self._norm(x)
        keys, values = memory.read(at)
        if own:
            own_keys, own_values = block.keys_values(y)
            keys = np.concatenate((keys, own_keys), axis=-2)
            values = np.concatenate((values, own_values), axis=-2)
        x += block.out(self._attend(block.split(block.query(y)), keys, values))
        limit(x, -RESIDUAL_MAX, RESIDUAL_MAX)
        x += block.down(block.hidden(self._norm(x)))
        limit(x, -RESIDUAL_MAX, RESIDUAL_MAX)

    # -- memory

    def start(self, rate: int, kind: str = "vector", faces: tuple[int, ...] = ()) -> Memory:
        """A memory that holds the start token; `faces`: leading axes of what is coded at once.

        `kind`: "vector", or the name of the spatial code that it is for.
        """
        memory = Memory(len(self._blocks[kind]))
        token = self._start[rate - 1]
        self._store(memory, np.broadcast_to(token, (*faces, 1, len(token))), kind)
        return memory

    def remember(
        self, memory: Memory, activations: FloatArray, first: int, rate: int, kind: str = "vector"
    ) -> None:
        """Add known tokens. activations: [..., n, 8] of the tokens from number `first` on."""
        places = slice(first, first + activations.shape[-2])
        total = self._embed.sums(activations, places)  # [..., n, D]
        total += self._embed_rate[rate - 1]
        self._store(memory, _floor(total, 0, ACTIVATION_MAX), kind)

    def _store(self, memory: Memory, tokens: FloatArray, kind: str) -> None:
        for i, block in enumerate(self._blocks[kind]):
            keys, values = block.keys_values(tokens)
            memory.keys[i].append(keys)
            memory.values[i].append(values)

    # -- steps

    def vector_step(
        self, memory: Memory, name: str, known: FloatArray, tokens: slice, rate: int
    ) -> tuple[FloatArray, FloatArray]:
        """u and v [..., 8 n] of the symbols of `tokens`; `known`: activations so far [..., K]."""
        x = self._place[tokens] + self._rate[rate - 1]  # [n, D]
        x = np.broadcast_to(x, (*known.shape[:-1], *x.shape)).copy()
        for i, block in enumerate(self._blocks["vector"]):
            self._through(block, x, memory, i, own=False)
        law = self._head.each(self._norm(x), tokens)  # [..., n, 2 * 8]
        half = law.shape[-1] // 2
        u, v = (part.reshape(*known.shape[:-1], -1) for part in (law[..., :half], law[..., half:]))
        return limit(u + self._around[name](known), -LAW_MAX, LAW_MAX), v

    def windows(self, part: str, lower: Sequence[FloatArray]) -> FloatArray:
        """Sums of the windows of all steps of a spatial code, of which nothing is known.

        `lower`: activations [patches, C] of all steps of the codes before it. For `hear`.
        """
        return self._windows[part].start(lower)

    def hear(self, part: str, sums: FloatArray, step: int, cell: FloatArray) -> None:
        """Add what a step's activations [patches, C] say to the sums of later steps."""
        self._windows[part].hear(sums, step, cell)

    def spatial_step(
        self, part: str, memory: Memory, step: int, sums: FloatArray, rate: int
    ) -> tuple[FloatArray, FloatArray]:
        """u and v [patches, C] of a step's cell of each patch; sums: see `hear`."""
        stage = SPATIAL.index(part) * self._steps + step
        x, around = self._windows[part].read(sums, step)
        x += self._patch
        x += self._patch_rate[stage, rate - 1]
        limit(x, -RESIDUAL_MAX, RESIDUAL_MAX)
        for i, block in enumerate(self._blocks[part]):
            self._through(block, x, memory, i, own=True)
        said = self._patch_head[stage](self._norm(x))
        said += around
        half = said.shape[-1] // 2
        return limit(said[..., :half], -LAW_MAX, LAW_MAX), said[..., half:]

    def channel_step(
        self,
        part: str,
        steps: slice,
        group: int,
        known: FloatArray,
        u: FloatArray,
        v: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        """u and v [steps, patches, k] of a group of channels with what cells' own channels say.

        group: from 1 on. known: activations of all groups before it, [steps, patches, n], group by
        group. u, v: what `spatial_step` says of the group.
        """
        weight, bias = self._channels[part][group - 1]
        more = np.concatenate((known, np.abs(known)), axis=2) @ weight[steps]
        more += bias[steps]
        _floor(more, -LAW_MAX, LAW_MAX)
        half = u.shape[2]
        return limit(u + more[..., :half], -LAW_MAX, LAW_MAX), v + more[..., half:]


class _Windows:
    """Linear maps from the 3x3 patches around one to each stage of a spatial code.

    What a stage has to say to all later ones is one product, done when its symbols are known: so
    each known number is read once, and channels that are zero everywhere, most of them at low
    rates, are left out. The codes before this one are heard first, as if they were one stage.
    """

    def __init__(
        self,
        maps: Sequence[tuple[_Dense, _Dense] | None],
        lower: int,
        channels: int,
        patches: int,
        width: int,
    ) -> None:
        """`maps`: those to each stage from all that is known then; None where nothing is.

        `lower`: numbers of a patch in all codes before; `channels`: of this one.
        """
        self._side = math.isqrt(patches)
        self._maps = maps
        self._shapes = [(patches, width), (patches, 2 * channels)]
        ends = [lower + i * channels for i in range(len(maps))]
        begins = [0, *ends]  # of the numbers that each stage says, the lower codes being stage 0
        sizes = [sum(len(d.bias) for d in both or ()) for both in maps]
        self._columns = [0, *accumulate(sizes)]  # of each stage, where its numbers begin
        self._weights = []  # of each stage, [x or |x|, channels, 9, numbers of all later stages]
        for said, (begin, end) in enumerate(zip(begins, ends, strict=False)):
            into = [
                dense.weight.reshape(2, ends[at], WINDOW**2, -1)[:, begin:end]
                for at in range(said, len(maps))
                for dense in maps[at] or ()
            ]
            self._weights.append(np.concatenate(into, axis=-1))
        bias = np.concatenate([dense.bias for both in maps for dense in both or ()])
        self._start = np.tile(bias, (patches, 1))

    def start(self, lower: Sequence[FloatArray]) -> FloatArray:
        """The sums; `lower`: activations [patches, C] of all stages of the codes before."""
        sums = self._start.copy()
        if lower:
            self._add(sums, 0, np.concatenate(lower, axis=1))
        return sums

    def hear(self, sums: FloatArray, stage: int, cell: FloatArray) -> None:
        if stage + 1 < len(self._maps):
            self._add(sums, stage + 1, cell)

    def _add(self, sums: FloatArray, said: int, cell: FloatArray) -> None:
        weight = self._weights[said]
        live = np.flatnonzero(cell.any(axis=0))
        if not live.size:
            return
        if live.size < LIVE_SHARE * cell.shape[1]:
            weight, cell = weight[:, live], cell[:, live]
        window = patch_windows(cell.T.reshape(-1, self._side, self._side))
        window = np.concatenate((window, np.abs(window)), axis=1)
        sums[:, self._columns[said] :] += window @ weight.reshape(window.shape[1], -1)

    def read(self, sums: FloatArray, stage: int) -> tuple[FloatArray, FloatArray]:
        """What a stage has heard: the window of its tokens [patches, D], its laws [.., 2 n]."""
        maps = self._maps[stage]
        if maps is None:
            x, law = (np.zeros(shape, np.float32) for shape in self._shapes)
            return x, law
        window, around = maps
        numbers = np.floor(sums[:, self._columns[stage] : self._columns[stage + 1]])
        x, law = np.split(numbers, [len(window.bias)], axis=1)
        return limit(x, window.low, window.high), limit(law, around.low, around.high)


def _between(
    maps: Sequence[_Dense], groups: npt.NDArray[Any]
) -> list[tuple[FloatArray, FloatArray]]:
    """For each group of channels from 1 on, the maps from the groups before it.

    Weights [steps, in, out], `in` group by group, and biases [steps, 1, out].
    """
    count = len(groups)
    weight = np.stack([dense.weight.reshape(2, count, 2, count) for dense in maps])
    bias = np.stack([dense.bias.reshape(1, 2, count) for dense in maps])
    order = np.argsort(groups, kind="stable")
    return [
        (
            weight[:, :, order[: (groups < i).sum()]][..., groups == i].reshape(
                len(maps), 2 * int((groups < i).sum()), -1
            ),
            bias[..., groups == i].reshape(len(maps), 1, -1),
        )
        for i in range(1, int(groups.max()) + 1)
    ]


def patch_windows(planes: FloatArray) -> FloatArray:
    """planes: [P, h, w], numbers of each patch -> those of the 3x3 patches around it, [h w, 9 P].

    Zeros outside; the nine of a plane lie side by side.
    """
    p, h, w = planes.shape
    margin = WINDOW // 2
    padded = np.zeros((p, h + 2 * margin, w + 2 * margin), np.float32)
    padded[:, margin:-margin, margin:-margin] = planes
    views = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), axis=(1, 2))
    return views.transpose(1, 2, 0, 3, 4).reshape(h * w, p * WINDOW**2)
