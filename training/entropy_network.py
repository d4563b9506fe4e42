"""The integer transformer of `sfic.entropy` in torch: float parameters, the same roundings.

What belongs here: the network that training moves, and the arrays that the product reads. In
training a rounded value carries the gradient of the unrounded one; without gradients every number
is the integer that `sfic.entropy.transformer` computes. The loop is `training.train_entropy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

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

    def units(self) -> tuple[Tensor, Tensor]:
        weight = rounded(self.weight * WEIGHT_UNIT).clamp(-127, 127)
        bias = rounded(self.bias * BIAS_UNIT)
        if self.mask is not None:  # what has no inputs is not to move at all
            return weight * self.mask, bias * self.mask.amax(dim=1)
        return weight, bias

    def forward(self, x: Tensor, extra: Tensor | float = 0.0) -> Tensor:
        """x: [..., in], or [n, places, in] -> [..., out]; `extra` is added to the sums."""
        weight, bias = self.units()
        if weight.ndim == 3:
            total = torch.einsum("npi,poi->npo", x, weight) + bias
        else:
            total = x @ weight.T + bias
        return rounded((total + extra) * 0.5**self.shift).clamp(self.low, self.high)


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
        y = norm(x)
        if own:
            own_keys, own_values = self.keys_values(y)
            keys = torch.cat((keys, own_keys), dim=2)
            values = torch.cat((values, own_values), dim=2)
        mean = attend(self.split(self.query(y)), keys, values, exp, allowed)
        mean = mean.transpose(1, 2).flatten(2)  # [n, T, D]
        x = x + F.dropout(self.out(mean), self.drop, self.training)
        x = x.clamp(-fixed.RESIDUAL_MAX, fixed.RESIDUAL_MAX)
        x = x + F.dropout(self.down(self.hidden(norm(x))), self.drop, self.training)
        return x.clamp(-fixed.RESIDUAL_MAX, fixed.RESIDUAL_MAX)


def norm(x: Tensor) -> Tensor:
    """`IntegerTransformer._norm`."""
    total = x.abs().sum(dim=-1, keepdim=True).clamp_min(float(x.shape[-1]))
    hard = torch.floor(x * torch.floor(fixed.NORM_NUMERATOR / total) * 0.5**fixed.NORM_SHIFT + 0.5)
    if torch.is_grad_enabled() and x.requires_grad:
        hard = straight(hard, x * (fixed.NORM_NUMERATOR * 0.5**fixed.NORM_SHIFT) / total)
    return hard.clamp(-TOP, TOP)


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


def exponents() -> npt.NDArray[np.int16]:
    """The table EXP of the file: 127 * 2**(-t / 16), rounded; 0 at its end."""
    table = np.floor(127 * 2.0 ** (-np.arange(fixed.EXP_STEPS + 1) / 16) + 0.5)
    table[-1] = 0
    return table.astype(np.int16)


class EntropyTransformer(nn.Module):
    """All parameters of the entropy model, and what batches of symbols cost by it.

    `sizes`: as in the file. `inputs`, `outputs`: integer units [9, n] of each part. `base`: the
    laws without context that training starts from, [9, 2, n]. `steps`: tokens in each step.
    `groups`: of each channel of the spatial code, in which group of a step it is coded, int [C].
    """

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, ...]],
        base: Mapping[str, npt.NDArray[np.int64]],
        inputs: Mapping[str, npt.NDArray[np.int64]],
        outputs: Mapping[str, npt.NDArray[np.int64]],
        steps: Mapping[str, tuple[int, ...]],
        groups: npt.NDArray[np.int64],
        *, width: int = 96, heads: int = 4, vector_blocks: int = 2, spatial_blocks: int = 2,
        hidden: int = 192, dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.sizes, self.steps = dict(sizes), dict(steps)
        self.shape = (width, heads, vector_blocks, spatial_blocks)
        c, s, _ = sizes["spatial"]
        patches, tokens = (s // 2) ** 2, sum(sum(steps[p]) for p in VECTORS)
        self.base = nn.ParameterDict(
            {p: nn.Parameter(torch.from_numpy(v.astype(np.float32)) / 8.0) for p, v in base.items()}
        )
        for part in sizes:
            self.register_buffer(f"input_{part}", torch.from_numpy(inputs[part]).float())
            self.register_buffer(f"output_{part}", torch.from_numpy(outputs[part]).float())
        self.register_buffer("exp", torch.from_numpy(exponents()).float())
        self.vector = nn.ModuleList(Block(width, heads, hidden) for _ in range(vector_blocks))
        self.spatial = nn.ModuleList(Block(width, heads, hidden) for _ in range(spatial_blocks))
        self.embed = Dense(GROUP, width, fixed.SHIFT, 0, TOP, places=tokens)
        self.embed_rate = nn.Parameter(torch.zeros(RATE_COUNT, width))
        self.start = nn.Parameter(0.5 * torch.randn(RATE_COUNT, width))
        self.place = nn.Parameter(torch.randn(tokens, width))
        self.rate = nn.Parameter(torch.zeros(RATE_COUNT, width))
        self.patch = nn.Parameter(torch.randn(patches, width))
        self.patch_rate = nn.Parameter(torch.zeros(len(QUADRANTS), RATE_COUNT, width))
        law = float(fixed.LAW_MAX)
        self.head = Dense(width, 2 * GROUP, fixed.SHIFT, -law, law, places=tokens, gain=0.1)
        window, limit = c * fixed.WINDOW**2, float(fixed.RESIDUAL_MAX)
        self.window = nn.ModuleList(
            Dense(window, width, fixed.SHIFT, -limit, limit) for _ in QUADRANTS
        )
        self.patch_head = nn.ModuleList(
            Dense(width, 2 * c, fixed.SHIFT, -law, law, gain=0.1) for _ in QUADRANTS
        )
        self.channels = nn.ModuleList(
            Dense(2 * c, 2 * c, fixed.SHIFT, -law, law, gain=0.0) for _ in QUADRANTS
        )
        self.groups = groups
        earlier = torch.from_numpy(groups[None, :] < groups[:, None]).float()  # [out, in]
        for dense in self.channels:
            dense.mask = earlier.tile(2, 2)
        self.around = nn.ModuleDict()
        for name, known, count in self._around_shapes():
            self.around[name] = Dense(known, count, fixed.SHIFT, -law, law, gain=0.0)
        known_cells = torch.zeros(len(QUADRANTS), 1, 1, s, s)
        for i in range(len(QUADRANTS)):
            for y, x in QUADRANTS[:i]:
                known_cells[i, :, :, y::2, x::2] = 1.0
        self.register_buffer("known_cells", known_cells)
        heard: list[int] = []  # of each token: how many of the memory, with the start, it may ask
        for part in VECTORS:
            for count in steps[part]:
                heard += [1 + len(heard)] * count
        allowed = torch.arange(tokens)[None, :] < torch.tensor(heard)[:, None]
        self.register_buffer("allowed", allowed)  # [tokens, memory]
        self.set_dropout(dropout)

    def _around_shapes(self) -> list[tuple[str, int, int]]:
        shapes, known = [], 0
        for part in VECTORS:
            for i, count in enumerate(self.steps[part]):
                if known:
                    shapes.append((f"around_{part}{i}", known, count * GROUP))
                known += count * GROUP
        c = self.sizes["spatial"][0]
        window = c * fixed.WINDOW**2
        return shapes + [(f"around_spatial{i}", window, c) for i in range(len(QUADRANTS))]

    def set_dropout(self, share: float) -> None:
        for block in (*self.vector, *self.spatial):
            block.drop = share

    @staticmethod
    def table(parameter: Tensor) -> Tensor:
        """Embeddings in the units of the residual stream."""
        return rounded(parameter * PLACE_UNIT).clamp(-512, 512)

    def activations(self, part: str, symbols: Tensor, rate: Tensor) -> Tensor:
        unit = getattr(self, f"input_{part}")[rate]
        if part == "spatial":
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
        x = x.clamp(-fixed.RESIDUAL_MAX, fixed.RESIDUAL_MAX)
        memory = tokens[:, :-1]  # the last token of all is never asked for
        for block in self.vector:
            keys, values = block.keys_values(memory)
            x = block(x, keys, values, self.exp, self.allowed, False)
        u, v = self.head(norm(x)).chunk(2, dim=2)
        linear, begin = [], 0
        for part in VECTORS:
            for i, count in enumerate(self.steps[part]):
                if begin:
                    linear.append(self.around[f"around_{part}{i}"](known[:, :begin]))
                else:
                    linear.append(torch.zeros_like(known[:, : count * GROUP]))
                begin += count * GROUP
        u = (u.flatten(1) + torch.cat(linear, dim=1)).clamp(-fixed.LAW_MAX, fixed.LAW_MAX)
        return u, v.flatten(1)

    def spatial_laws(
        self, step: int, code: Tensor, tokens: Tensor, rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u, v [n, patches, C] of the cells of a step; code: activations [n, C, S, S].

        Each channel's law depends on those of the groups before it.
        """
        seen = code * self.known_cells[step]
        margin = (fixed.WINDOW - fixed.PATCH) // 2
        window = F.unfold(seen, fixed.WINDOW, padding=margin, stride=fixed.PATCH).transpose(1, 2)
        x = self.window[step](window) + self.table(self.patch)[None]
        x = x + self.table(self.patch_rate)[step][rate][:, None]
        x = x.clamp(-fixed.RESIDUAL_MAX, fixed.RESIDUAL_MAX)
        for block in self.spatial:
            keys, values = block.keys_values(tokens)
            x = block(x, keys, values, self.exp, None, True)
        u, v = self.patch_head[step](norm(x)).chunk(2, dim=2)
        u = u + self.around[f"around_spatial{step}"](window)
        u = u.clamp(-fixed.LAW_MAX, fixed.LAW_MAX)
        row, column = QUADRANTS[step]
        own = code[:, :, row::2, column::2].flatten(2).transpose(1, 2)  # [n, patches, C]
        du, dv = self.channels[step](torch.cat((own, own.abs()), dim=2)).chunk(2, dim=2)
        return (u + du).clamp(-fixed.LAW_MAX, fixed.LAW_MAX), v + dv

    def law(
        self, base: Tensor, u: Tensor, v: Tensor, gain: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean in eighths and scale index; base: [n, 2, ...]."""
        mean = base[:, 0] + rounded(u * gain * 0.5**GAIN_SHIFT)
        return mean, base[:, 1] + rounded(v * 0.5**SCALE_SHIFT)

    def base_units(self, part: str, rate: Tensor) -> Tensor:
        return rounded(self.base[part] * 8.0)[rate]

    def forward(
        self, parts: Mapping[str, Tensor], rate: Tensor, cost: nn.Module,
        steps: tuple[int, ...] = (0, 1, 2, 3),
    ) -> dict[str, Tensor]:
        """Bits [n] of each part; parts: integer-valued symbols; rate: 0..8.

        `steps`: those of the spatial code to look at; their cost stands for all four.
        """
        known = torch.cat([self.activations(p, parts[p], rate) for p in VECTORS], dim=1)
        tokens = self.tokens(known, rate)
        base = torch.cat([self.base_units(p, rate) for p in VECTORS], dim=2)  # [n, 2, K]
        gain = torch.cat([getattr(self, f"output_{p}")[rate] for p in VECTORS], dim=1)
        u, v = self.vector_laws(known, tokens, rate)
        first = self.steps["basic"][0] * GROUP  # nothing is known there
        heard = torch.ones(u.shape[1])
        heard[:first] = 0.0
        mean, scale = self.law(base, u * heard, v * heard, gain)
        costs = cost(torch.cat([parts[p] for p in VECTORS], dim=1), mean, scale)
        pieces = costs.split([self.sizes[p][0] for p in VECTORS], dim=1)
        bits = {p: piece.sum(dim=1) for p, piece in zip(VECTORS, pieces, strict=True)}
        c, s, _ = self.sizes["spatial"]
        code = self.activations("spatial", parts["spatial"], rate)
        base = self.base_units("spatial", rate).unflatten(2, (c, s, s))
        gain = self.output_spatial[rate][:, None]  # [n, 1, C]
        total = torch.zeros(len(rate))
        for step in steps:
            y, x = QUADRANTS[step]
            u, v = self.spatial_laws(step, code, tokens, rate)
            own = base[..., y::2, x::2].flatten(3).transpose(2, 3)  # [n, 2, patches, C]
            symbols = parts["spatial"][:, :, y::2, x::2].flatten(2).transpose(1, 2)
            mean, scale = self.law(own, u, v, gain)
            total = total + cost(symbols, mean, scale).sum(dim=(1, 2))
        bits["spatial"] = total * (len(QUADRANTS) / max(len(steps), 1))
        return bits

    @staticmethod
    def _file_name(name: str) -> str:
        """A module's name in the file: "spatial.0.query" is "spatial0.query" there."""
        short = name.replace("around.", "")
        for long in ("vector", "spatial", "window", "patch_head", "channels"):
            if short.startswith(f"{long}."):
                short = short.replace(f"{long}.", long, 1)
        return short

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
        arrays["groups.spatial"] = self.groups
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
            arrays["groups.spatial"].astype(np.int64),
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
