"""Entropy models to compare with: the factorised one, and a hidden layer for each part.

They are only ever trained and measured; the product runs `sfic.entropy.transformer`. Roundings are
those of an integer network (weights in 1/64, activations in sixteenths).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sfic.entropy.transformer import ACTIVATION_MAX
from training.codec_checkpoint import RATE_COUNT

SYMBOL_CLIP = 31
SUMMARY = 48


def round_ste(x: Tensor) -> Tensor:
    """Round to nearest, halves up, with the gradient of the identity."""
    return x + (torch.floor(x + 0.5) - x).detach()


class RoundedNet(nn.Module):
    """Hidden layers with rectifiers: activations in sixteenths, weights in 1/64."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.randn(o, i) * math.sqrt(1.0 / i)) for i, o in pairs]
        )
        self.biases = nn.ParameterList(
            [nn.Parameter(torch.zeros(RATE_COUNT, o)) for _, o in pairs]
        )
        with torch.no_grad():
            self.weights[-1].mul_(0.1)

    def weight_units(self, i: int) -> Tensor:
        return round_ste(self.weights[i] * 64.0).clamp(-127, 127)

    def bias_units(self, i: int) -> Tensor:
        return round_ste(self.biases[i] * 1024.0)

    def forward(self, x: Tensor, rate: Tensor) -> Tensor:
        """x: [n, in] in sixteenths (integers), rate: [n] 0..8 -> [n, out] in eighths, rounded."""
        last = len(self.weights) - 1
        for i in range(last + 1):
            total = x @ self.weight_units(i).T + self.bias_units(i)[rate]
            if i == last:
                return round_ste(total / 128.0)
            x = round_ste(total / 64.0).clamp(0, ACTIVATION_MAX)
        raise AssertionError


class Factorised(nn.Module):
    """Laws without context: one mean and scale for each symbol and rate."""

    def __init__(self, base: Mapping[str, npt.NDArray[np.int64]]) -> None:
        super().__init__()
        self.base = nn.ParameterDict(
            {p: nn.Parameter(torch.from_numpy(v.astype(np.float32)) / 8.0) for p, v in base.items()}
        )

    def forward(
        self, parts: Mapping[str, Tensor], rate: Tensor, cost: nn.Module
    ) -> dict[str, Tensor]:
        """Bits [n] of each part; parts: integer-valued symbols; rate: [n] 0..8."""
        bits = {}
        for name, values in parts.items():
            law = round_ste(self.base[name] * 8.0)[rate]
            bits[name] = cost(values.flatten(1), law[:, 0], law[:, 1]).sum(dim=1)
        return bits


class HiddenLayers(nn.Module):
    """Middle from basic, enhanced from both, and the spatial code in two checkerboard passes."""

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, ...]],
        base: Mapping[str, npt.NDArray[np.int64]],
    ) -> None:
        super().__init__()
        b, m, e = (sizes[k][0] for k in ("basic", "middle", "enhanced"))
        c, s, _ = sizes["spatial"]
        self.sizes = sizes
        self.base = nn.ParameterDict(
            {p: nn.Parameter(torch.from_numpy(v.astype(np.float32)) / 8.0) for p, v in base.items()}
        )
        self.nets = nn.ModuleDict(
            {
                "middle": RoundedNet((b, 256, 2 * m)),
                "enhanced": RoundedNet((b + m, 256, 2 * e)),
                "summary": RoundedNet((b + m + e, 128, SUMMARY)),
                "first": RoundedNet((SUMMARY + c, 64, 2 * c)),
                "second": RoundedNet((SUMMARY + 5 * c, 96, 2 * c)),
            }
        )
        self.register_buffer("first_cells", checkerboard(s))

    def base_units(self, name: str, rate: Tensor) -> Tensor:
        """[n, 2, size]: mean in eighths, scale index."""
        return round_ste(self.base[name] * 8.0)[rate]

    def forward(
        self, parts: Mapping[str, Tensor], rate: Tensor, cost: nn.Module
    ) -> dict[str, Tensor]:
        """parts: float-valued integer symbols; rate: [n] 0..8 -> bits [n] of each part."""
        n = len(rate)
        x = {k: v.clamp(-SYMBOL_CLIP, SYMBOL_CLIP) * 4.0 for k, v in parts.items()}
        bits: dict[str, Tensor] = {}
        base = self.base_units("basic", rate)
        bits["basic"] = cost(parts["basic"], base[:, 0], base[:, 1]).sum(dim=1)
        lower = x["basic"]
        for name in ("middle", "enhanced"):
            out = self.nets[name](lower, rate).unflatten(1, (2, -1))
            own = self.base_units(name, rate) + out
            bits[name] = cost(parts[name], own[:, 0], own[:, 1]).sum(dim=1)
            lower = torch.cat((lower, x[name]), dim=1)
        summary = self.nets["summary"](lower, rate).clamp(0, ACTIVATION_MAX)  # [n, G]
        c, s, _ = self.sizes["spatial"]
        base = self.base_units("spatial", rate).unflatten(2, (c, s * s))  # [n, 2, C, S S]
        place = base[:, 1].detach().clamp(0, ACTIVATION_MAX).transpose(1, 2)  # [n, S S, C]
        rows = summary[:, None].expand(n, s * s, -1)
        code = x["spatial"]  # [n, C, S, S]
        half = code * self.first_cells.reshape(1, 1, s, s)
        padded = nn.functional.pad(half, (1, 1, 1, 1))
        views = torch.cat(
            (padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1], padded[:, :, 1:-1, :-2],
             padded[:, :, 1:-1, 2:]), dim=1,
        ).flatten(2).transpose(1, 2)  # [n, S S, 4 C]
        symbols = parts["spatial"].flatten(2).transpose(1, 2)  # [n, S S, C]
        total = torch.zeros(n)
        for net, cells, inputs in (
            ("first", self.first_cells, (rows, place)),
            ("second", ~self.first_cells, (rows, place, views)),
        ):
            joined = torch.cat(inputs, dim=2)[:, cells]  # [n, k, in]
            k = joined.shape[1]
            out = self.nets[net](joined.flatten(0, 1), rate.repeat_interleave(k))
            out = out.unflatten(0, (n, k)).unflatten(2, (2, c))  # [n, k, 2, C]
            own = base.permute(0, 3, 1, 2)[:, cells] + out  # [n, k, 2, C]
            cell_bits = cost(symbols[:, cells], own[:, :, 0], own[:, :, 1])
            total = total + cell_bits.sum(dim=(1, 2))
        bits["spatial"] = total
        return bits


def checkerboard(size: int) -> Tensor:
    """[size * size] True for the cells coded first."""
    place = torch.arange(size * size)
    return (place // size + place % size) % 2 == 0
