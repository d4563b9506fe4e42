"""The integer transformer of `sfic.entropy` in torch: float parameters, the same roundings.

What belongs here: the network that training moves, and the arrays that the product reads. The loop
is `training.train_entropy`.

A network has two arithmetics. The exact one rounds as `sfic.entropy.transformer` does: a rounded
value carries the gradient of the unrounded one, and without gradients every number is the integer
that the product computes. The plain one leaves all roundings out and multiplies in bfloat16: five
times as fast, and near enough that most of training can be done in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfic.entropy import transformer as fixed
from sfic.entropy.model import (
    GAIN_SHIFT,
    GROUP,
    INPUT_SHIFT,
    QUADRANTS,
    SCALE_SHIFT,
    SPATIAL,
    VECTORS,
)

RATE_COUNT = 9
TOP = float(fixed.ACTIVATION_MAX)
WEIGHT_UNIT = 128.0
BIAS_UNIT = 4096.0
PLACE_UNIT = 32.0


def straight(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, exactly when there is no gradient, with the gradient of `soft`."""
    if torch.is_grad_enabled() and soft.requires_grad:
        return soft + (hard - soft).detach()
    return hard


def rounded(x: Tensor) -> Tensor:
    """floor(x + 1/2), gradient of the identity."""
    return straight(torch.floor(x + 0.5), x)


def clipped(x: Tensor, low: float, high: float) -> Tensor:
    """A clamp whose way back is one pass over memory."""
    return F.hardtanh(x, low, high)


def residual(x: Tensor) -> Tensor:
    """The residual stream, clipped."""
    return clipped(x, -float(fixed.RESIDUAL_MAX), float(fixed.RESIDUAL_MAX))


def within_law(u: Tensor) -> Tensor:
    """The mean's part of a law, clipped."""
    return clipped(u, -float(fixed.LAW_MAX), float(fixed.LAW_MAX))


class Dense(nn.Module):
    """`transformer._Dense`; `places`: a matrix for each of so many tokens."""

    def __init__(
        self, inputs: int, outputs: int, shift: int, low: float, high: float,
        *, places: int = 0, gain: float = 1.0,
    ) -> None:
        super().__init__()
        lead = (places,) if places else ()
        std = gain / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.randn(*lead, outputs, inputs) * std)
        self.bias = nn.Parameter(torch.zeros(*lead, outputs))
        self.shift, self.low, self.high = shift, low, high
        self.mask: Tensor | None = None
        self.exact = True

    def units(self) -> tuple[Tensor, Tensor]:
        weight = rounded(self.weight * WEIGHT_UNIT).clamp(-127, 127)
        bias = rounded(self.bias * BIAS_UNIT)
        return self._masked(weight, bias)

    def _masked(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if self.mask is not None:  # what has no inputs is not to move at all
            return weight * self.mask, bias * self.mask.amax(dim=1)
        return weight, bias

    def forward(self, x: Tensor, extra: Tensor | float = 0.0) -> Tensor:
        """x: [..., in], or [n, places, in] -> [..., out]; `extra` is added to the sums."""
        if self.exact:
            weight, bias = self.units()
        else:
            unit = 0.5**self.shift
            weight = self.weight.clamp(-127 / WEIGHT_UNIT, 127 / WEIGHT_UNIT)
            weight, bias = self._masked(weight * (WEIGHT_UNIT * unit), self.bias * BIAS_UNIT * unit)
            x, weight = x.bfloat16(), weight.bfloat16()
        if weight.ndim == 3:
            total = torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1) + bias
        elif self.exact:
            total = x @ weight.T + bias
        else:
            total = F.linear(x, weight, bias.bfloat16())
        if self.exact:
            return clipped(rounded((total + extra) * 0.5**self.shift), self.low, self.high)
        if not isinstance(extra, float):
            total = total + extra * 0.5**self.shift
        return clipped(total, self.low, self.high)


class Block(nn.Module):
    """`transformer._Block` over a batch."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        limit = float(fixed.RESIDUAL_MAX)
        self.query = Dense(width, width, fixed.SHIFT, -TOP, TOP)
        self.key_value = Dense(width, 2 * width, fixed.SHIFT, -TOP, TOP)
        self.out = Dense(width, width, fixed.VALUE_SHIFT, -limit, limit, gain=0.5)
        self.hidden = Dense(width, hidden, fixed.SHIFT, 0, float(fixed.HIDDEN_MAX))
        self.down = Dense(hidden, width, fixed.SHIFT, -limit, limit, gain=0.5)
        self.heads = heads
        self.drop = 0.0
        self.exact = True

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)  # [n, heads, L, d]

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.key_value(tokens).chunk(2, dim=-1)
        return self.split(keys), self.split(values)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, exp: Tensor,
        allowed: Tensor | None, own: bool,
    ) -> Tensor:
        """x: [n, T, D]; keys, values: [n, heads, L, d]; allowed: bool [T, L] -> [n, T, D]."""
        y = norm(x, self.exact)
        if own:
            own_keys, own_values = self.keys_values(y)
            keys = torch.cat((keys, own_keys), dim=2)
            values = torch.cat((values, own_values), dim=2)
        query = self.split(self.query(y))
        if self.exact:
            mean = attend(query, keys, values, exp, allowed)
        else:
            mean = plain_attend(query, keys, values, allowed)
        mean = mean.transpose(1, 2).flatten(2)  # [n, T, D]
        x = self._plus(x, self.out(mean))
        return self._plus(x, self.down(self.hidden(norm(x, self.exact))))

    def _plus(self, x: Tensor, change: Tensor) -> Tensor:
        if self.drop and self.training:
            change = F.dropout(change, self.drop)
        return residual(x + change)


def norm(x: Tensor, exact: bool) -> Tensor:
    """`IntegerTransformer._norm`."""
    total = x.abs().sum(dim=-1, keepdim=True).clamp_min(float(x.shape[-1]))
    plain = x * (fixed.NORM_NUMERATOR * 0.5**fixed.NORM_SHIFT / total)
    if exact:
        ratio = torch.floor(fixed.NORM_NUMERATOR / total.detach())
        plain = straight(torch.floor(x.detach() * ratio * 0.5**fixed.NORM_SHIFT + 0.5), plain)
    return clipped(plain, -TOP, TOP)


def attend(
    q: Tensor, keys: Tensor, values: Tensor, exp: Tensor, allowed: Tensor | None
) -> Tensor:
    """`IntegerTransformer._attend`; q: [n, heads, T, d] -> [n, heads, T, d]."""
    score = rounded(q @ keys.transpose(2, 3) * 0.5**fixed.SCORE_SHIFT)
    if allowed is not None:
        score = score.masked_fill(~allowed, -1e6)
    below = score.detach().amax(dim=-1, keepdim=True) - score
    below = below.clamp(max=float(fixed.EXP_STEPS))
    weight = exp[below.detach().long()]
    if torch.is_grad_enabled() and score.requires_grad:
        weight = straight(weight, weight * (1.0 - (below - below.detach()) * (math.log(2) / 16)))
    total = weight.sum(dim=-1, keepdim=True)
    sums = weight @ values
    hard = torch.floor((4.0 * sums + total) / (total + total))
    return straight(hard, 2.0 * sums / total) if sums.requires_grad else hard


def plain_attend(q: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None) -> Tensor:
    """As `attend`, without roundings."""
    # A tenth of the time of scaled_dot_product_attention, whose way back is slow on small heads.
    score = (q * (0.5**fixed.SCORE_SHIFT * math.log(2) / 16)) @ keys.transpose(2, 3)
    if allowed is not None:
        score = score.masked_fill(~allowed, -1e6)
    return 2.0 * (score.softmax(dim=-1) @ values)


def windows(planes: Tensor) -> Tensor:
    """`transformer.patch_windows` of a batch: [n, P, h, w] -> [n, h w, 9 P]."""
    n, p, h, w = planes.shape
    padded = F.pad(planes, [fixed.WINDOW // 2] * 4)
    shifted = [
        padded[:, :, y : y + h, x : x + w]
        for y in range(fixed.WINDOW) for x in range(fixed.WINDOW)
    ]
    stack = torch.stack(shifted, dim=4)  # [n, P, h, w, 9]
    return stack.permute(0, 2, 3, 1, 4).reshape(n, h * w, p * fixed.WINDOW**2)


def with_magnitudes(x: Tensor) -> Tensor:
    """x: [..., k] -> x and its magnitudes [..., 2 k]."""
    return torch.cat((x, x.abs()), dim=-1)


def exponents() -> npt.NDArray[np.int16]:
    """The table EXP of the file: 127 * 2**(-t / 16), rounded; 0 at its end."""
    table = np.floor(127 * 2.0 ** (-np.arange(fixed.EXP_STEPS + 1) / 16) + 0.5)
    table[-1] = 0
    return table.astype(np.int16)


class EntropyTransformer(nn.Module):
    """All parameters of the entropy model, and what batches of symbols cost by it.

    `sizes`: as in the file. `inputs`, `outputs`: integer units [9, n] of each part. `base`: the
    laws without context that training starts from, [9, 2, n]. `steps`: tokens in each step.
    `groups`: in which group of a step each channel of a spatial code is coded, int [C].
    """

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, ...]],
        base: Mapping[str, npt.NDArray[np.int64]],
        inputs: Mapping[str, npt.NDArray[np.int64]],
        outputs: Mapping[str, npt.NDArray[np.int64]],
        steps: Mapping[str, tuple[int, ...]],
        groups: Mapping[str, npt.NDArray[np.int64]],
        *, width: int, vector_blocks: int, spatial_blocks: int, dropout: float,
        heads: int = 4, hidden: int = 192,
    ) -> None:
        super().__init__()
        self.sizes, self.steps = dict(sizes), dict(steps)
        self.shape = (width, heads, vector_blocks, spatial_blocks)
        s = sizes[SPATIAL[0]][1]
        patches, tokens = (s // 2) ** 2, sum(sum(steps[p]) for p in VECTORS)
        self.base = nn.ParameterDict(
            {p: nn.Parameter(torch.from_numpy(v.astype(np.float32)) / 8.0) for p, v in base.items()}
        )
        for part in sizes:
            self.register_buffer(f"input_{part}", torch.from_numpy(inputs[part]).float())
            self.register_buffer(f"output_{part}", torch.from_numpy(outputs[part]).float())
        self.register_buffer("exp", torch.from_numpy(exponents()).float())
        self.vector = nn.ModuleList(Block(width, heads, hidden) for _ in range(vector_blocks))
        self.coarse = nn.ModuleList(Block(width, heads, hidden) for _ in range(spatial_blocks))
        self.fine = nn.ModuleList(Block(width, heads, hidden) for _ in range(spatial_blocks))
        self.embed = Dense(GROUP, width, fixed.SHIFT, 0, TOP, places=tokens)
        self.embed_rate = nn.Parameter(torch.zeros(RATE_COUNT, width))
        self.start = nn.Parameter(0.5 * torch.randn(RATE_COUNT, width))
        self.place = nn.Parameter(torch.randn(tokens, width))
        self.rate = nn.Parameter(torch.zeros(RATE_COUNT, width))
        self.patch = nn.Parameter(torch.randn(patches, width))
        stages = len(SPATIAL) * len(QUADRANTS)
        self.patch_rate = nn.Parameter(torch.zeros(stages, RATE_COUNT, width))
        law = float(fixed.LAW_MAX)
        self.head = Dense(width, 2 * GROUP, fixed.SHIFT, -law, law, places=tokens, gain=0.1)
        self.groups = dict(groups)
        limit = float(fixed.RESIDUAL_MAX)
        self.window, self.patch_head = nn.ModuleDict(), nn.ModuleDict()
        self.channels, self.around = nn.ModuleDict(), nn.ModuleDict()
        for name, known, size in self._around_shapes():
            self.around[name] = Dense(known, size, fixed.SHIFT, -law, law, gain=0.0)
        known = 0
        for i in range(stages):
            own = groups[SPATIAL[i // len(QUADRANTS)]]
            both = 2 * len(own)
            if i:
                self.window[str(i)] = Dense(known, width, fixed.SHIFT, -limit, limit)
                self.around[f"around_spatial{i}"] = Dense(
                    known, both, fixed.SHIFT, -law, law, gain=0.0
                )
            self.patch_head[str(i)] = Dense(width, both, fixed.SHIFT, -law, law, gain=0.1)
            dense = Dense(both, both, fixed.SHIFT, -law, law, gain=0.0)
            earlier = torch.from_numpy(own[None, :] < own[:, None]).float()  # [out, in]
            dense.mask = earlier.tile(2, 2)
            self.channels[str(i)] = dense
            known += 2 * fixed.WINDOW**2 * len(own)
        heard: list[int] = []  # of each token: how many of the memory, with the start, it may ask
        for part in VECTORS:
            for count in steps[part]:
                heard += [1 + len(heard)] * count
        allowed = torch.arange(tokens)[None, :] < torch.tensor(heard)[:, None]
        self.register_buffer("allowed", allowed)  # [tokens, memory]
        self.set_dropout(dropout)
        self.exact = True

    def _around_shapes(self) -> list[tuple[str, int, int]]:
        shapes, known = [], 0
        for part in VECTORS:
            for i, count in enumerate(self.steps[part]):
                if known:
                    shapes.append((f"around_{part}{i}", known, count * GROUP))
                known += count * GROUP
        return shapes

    def set_dropout(self, share: float) -> None:
        for block in (*self.vector, *self.coarse, *self.fine):
            block.drop = share

    def set_exact(self, exact: bool) -> None:
        """Choose the arithmetic: the product's, or the plain one."""
        for module in self.modules():
            if isinstance(module, (Dense, Block)):
                module.exact = exact
        self.exact = exact

    @staticmethod
    def table(parameter: Tensor) -> Tensor:
        """Embeddings in the units of the residual stream."""
        return rounded(parameter * PLACE_UNIT).clamp(-512, 512)

    def activations(self, part: str, symbols: Tensor, rate: Tensor) -> Tensor:
        unit = getattr(self, f"input_{part}")[rate]
        if part in SPATIAL:
            unit = unit[:, :, None, None]
        x = symbols.clamp(-TOP, TOP) * unit * 0.5**INPUT_SHIFT
        return torch.floor(x + 0.5).clamp(-TOP, TOP)

    def tokens(self, known: Tensor, rate: Tensor) -> Tensor:
        """known: activations [n, K] -> the start token and theirs [n, 1 + K / 8, D]."""
        start = rounded(self.start * PLACE_UNIT).clamp(-TOP, TOP)[rate][:, None]
        extra = rounded(self.embed_rate * BIAS_UNIT)[rate][:, None]
        return torch.cat((start, self.embed(known.unflatten(1, (-1, GROUP)), extra)), dim=1)

    def vector_laws(self, known: Tensor, tokens: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """u, v [n, K] of all symbols of the vectors, each from the steps before it."""
        x = self.table(self.place)[None] + self.table(self.rate)[rate][:, None]  # [n, T, D]
        x = residual(x)
        memory = tokens[:, :-1]  # the last token of all is never asked for
        for block in self.vector:
            keys, values = block.keys_values(memory)
            x = block(x, keys, values, self.exp, self.allowed, False)
        u, v = self.head(norm(x, self.exact)).float().chunk(2, dim=2)
        linear, begin = [], 0
        for part in VECTORS:
            for i, count in enumerate(self.steps[part]):
                if begin:
                    linear.append(self.around[f"around_{part}{i}"](known[:, :begin]))
                else:
                    linear.append(torch.zeros_like(known[:, : count * GROUP]))
                begin += count * GROUP
        u = within_law(u.flatten(1) + torch.cat(linear, dim=1))
        return u, v.flatten(1)

    def cells(self, code: Tensor) -> list[Tensor]:
        """code: [n, C, S, S] -> that cell of each patch which each step codes, [n, C, h, w]."""
        return [code[:, :, y::2, x::2] for y, x in QUADRANTS]

    def spatial_laws(
        self, stage: int, own: Tensor, window: Tensor | None, tokens: Tensor, rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u, v [n, patches, C] of the channels of the cells of a stage.

        `own`: activations of these cells [n, C, h, w]: each channel's law depends on those of the
        groups before it. `window`: the windows of the cells of all stages before; None: there are
        none. `tokens`: those that may be asked.
        """
        seen, law = torch.zeros(()), torch.zeros(())
        if window is not None:
            known = with_magnitudes(window)
            seen = self.window[str(stage)](known)
            law = self.around[f"around_spatial{stage}"](known).float()
        where = self.table(self.patch)[None] + self.table(self.patch_rate[stage])[rate][:, None]
        x = residual(seen + where)
        for block in self.coarse if stage < len(QUADRANTS) else self.fine:
            keys, values = block.keys_values(tokens)
            x = block(x, keys, values, self.exp, None, True)
        law = self.patch_head[str(stage)](norm(x, self.exact)).float() + law
        u, v = law.chunk(2, dim=2)
        flat = own.flatten(2).transpose(1, 2)  # [n, patches, C]
        du, dv = self.channels[str(stage)](with_magnitudes(flat)).float().chunk(2, dim=2)
        return within_law(within_law(u) + du), v + dv

    def law(
        self, base: Tensor, u: Tensor, v: Tensor, gain: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean in eighths and scale index; base: [n, 2, ...]."""
        mean = base[:, 0] + rounded(u * gain * 0.5**GAIN_SHIFT)
        return mean, base[:, 1] + rounded(v * 0.5**SCALE_SHIFT)

    def base_units(self, part: str, rate: Tensor) -> Tensor:
        """[n, 2, size]: mean in eighths, scale index."""
        # A product is quicker to go back through than an index; it is exact.
        chosen = F.one_hot(rate, RATE_COUNT).float()
        return (chosen @ rounded(self.base[part] * 8.0).flatten(1)).unflatten(1, (2, -1))

    def vector_tables(
        self, parts: Mapping[str, Tensor], rate: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and scale index [n, K] of the symbols of the three vectors; their tokens."""
        known = torch.cat([self.activations(p, parts[p], rate) for p in VECTORS], dim=1)
        tokens = self.tokens(known, rate)
        base = torch.cat([self.base_units(p, rate) for p in VECTORS], dim=2)  # [n, 2, K]
        gain = torch.cat([getattr(self, f"output_{p}")[rate] for p in VECTORS], dim=1)
        u, v = self.vector_laws(known, tokens, rate)
        first = self.steps["basic"][0] * GROUP  # nothing is known there
        heard = (torch.arange(u.shape[1]) >= first).float()
        return *self.law(base, u * heard, v * heard, gain), tokens

    def spatial_tables(
        self, parts: Mapping[str, Tensor], tokens: Tensor, rate: Tensor
    ) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Part, its symbols, mean and scale index [n, patches, C], of each stage in order."""
        windowed: list[Tensor] = []
        lower = sum(sum(self.steps[part]) for part in VECTORS[:2])
        may_ask = dict(zip(SPATIAL, (1 + lower, tokens.shape[1]), strict=True))
        for first, (part, asked) in enumerate(may_ask.items()):
            symbols = parts[part]
            cells = self.cells(self.activations(part, symbols, rate))
            values = self.cells(symbols)
            bases = self.cells(
                self.base_units(part, rate).flatten(1).unflatten(
                    1, (2 * symbols.shape[1], *symbols.shape[2:])
                )
            )
            gain = getattr(self, f"output_{part}")[rate][:, None]  # [n, 1, C]
            for step, cell in enumerate(cells):
                stage = first * len(QUADRANTS) + step
                window = torch.cat(windowed, dim=2) if windowed else None
                u, v = self.spatial_laws(stage, cell, window, tokens[:, :asked], rate)
                windowed.append(windows(cell))
                base = bases[step].unflatten(1, (2, -1)).flatten(3).transpose(2, 3)
                own = values[step].flatten(2).transpose(1, 2)
                yield part, own, *self.law(base, u, v, gain)

    def forward(
        self, parts: Mapping[str, Tensor], rate: Tensor, cost: nn.Module
    ) -> dict[str, Tensor]:
        """Bits [n] of each part; parts: integer-valued symbols; rate: 0..8."""
        mean, scale, tokens = self.vector_tables(parts, rate)
        costs = cost(torch.cat([parts[p] for p in VECTORS], dim=1), mean, scale)
        pieces = costs.split([self.sizes[p][0] for p in VECTORS], dim=1)
        bits = {p: piece.sum(dim=1) for p, piece in zip(VECTORS, pieces, strict=True)}
        stages: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {part: [] for part in SPATIAL}
        for part, *law in self.spatial_tables(parts, tokens, rate):
            stages[part].append((law[0], law[1], law[2]))
        for part, laws in stages.items():
            symbols, mean, scale = (
                torch.cat([x.flatten(1) for x in column], dim=1)
                for column in zip(*laws, strict=True)
            )
            bits[part] = cost(symbols, mean, scale).sum(dim=1)
        return bits

    @staticmethod
    def _file_name(name: str) -> str:
        """A module's name in the file: "coarse.0.query" is "coarse0.query" there."""
        if name.startswith("around."):
            return name.removeprefix("around.")
        return re.sub(r"^(\w+)\.(\d)", r"\1\2", name)

    @torch.no_grad()
    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """What `EntropyModel.from_arrays` reads."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"net.shape": np.array(self.shape)}

        def put(name: str, value: Tensor, kind: type[np.generic] = np.int16) -> None:
            arrays[name] = value.numpy().astype(kind)

        for name, module in self.named_modules():
            if isinstance(module, Dense):
                short = self._file_name(name)
                weight, bias = module.units()
                put(f"net.{short}.weight", weight, np.int8)
                put(f"net.{short}.bias", bias, np.int32)
        put("net.embed_rate", rounded(self.embed_rate * BIAS_UNIT), np.int32)
        put("net.start", rounded(self.start * PLACE_UNIT).clamp(-TOP, TOP))
        for name in ("place", "rate", "patch", "patch_rate"):
            put(f"net.{name}", self.table(getattr(self, name)))
        arrays["net.exp"] = exponents()
        for part, size in self.sizes.items():
            put(f"base.{part}", rounded(self.base[part] * 8.0))
            put(f"input.{part}", getattr(self, f"input_{part}"))
            put(f"output.{part}", getattr(self, f"output_{part}"))
            arrays[f"size.{part}"] = np.array(size)
        for part in VECTORS:
            arrays[f"steps.{part}"] = np.array(self.steps[part])
        for part, groups in self.groups.items():
            arrays[f"groups.{part}"] = groups
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> EntropyTransformer:
        """The network of a file, frozen: its parameters are the file's integers, to the bit."""
        parts = [name[5:] for name in arrays if name.startswith("size.")]

        def integers(prefix: str) -> dict[str, npt.NDArray[np.int64]]:
            return {p: arrays[f"{prefix}.{p}"].astype(np.int64) for p in parts}

        sizes = {p: tuple(int(x) for x in arrays[f"size.{p}"]) for p in parts}
        steps = {p: tuple(int(x) for x in arrays[f"steps.{p}"]) for p in VECTORS}
        width, heads, vector_blocks, spatial_blocks = (int(x) for x in arrays["net.shape"])
        model = cls(
            sizes, integers("base"), integers("input"), integers("output"), steps,
            {p: arrays[f"groups.{p}"].astype(np.int64) for p in SPATIAL},
            width=width, heads=heads, vector_blocks=vector_blocks, spatial_blocks=spatial_blocks,
            hidden=arrays["net.vector0.hidden.weight"].shape[0], dropout=0.0,
        )

        def stored(name: str) -> Tensor:
            return torch.from_numpy(arrays[f"net.{name}"].astype(np.float32))

        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, Dense):
                    short = model._file_name(name)
                    module.weight.copy_(stored(f"{short}.weight") / WEIGHT_UNIT)
                    module.bias.copy_(stored(f"{short}.bias") / BIAS_UNIT)
            for name in ("start", "place", "rate", "patch", "patch_rate"):
                getattr(model, name).copy_(stored(name) / PLACE_UNIT)
            model.embed_rate.copy_(stored("embed_rate") / BIAS_UNIT)
            model.exp.copy_(stored("exp"))
        return model.requires_grad_(False).eval()
