"""What every entropy model starts from: costs by the tables, laws without context, integer units.

The network on top is `training.entropy_network`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sfic.entropy.model import UNIT_MAX
from sfic.entropy.tables import RADIUS, TableSet
from training.codec_checkpoint import RATE_COUNT, SymbolSet

FRACTIONS = 8
INPUT_DEVIATION = 28.0
# One symbol of each sign in so many is added to the counts: what was never seen stays affordable.
PSEUDO_COUNT = 0.25


class TableCost(nn.Module):
    """Bits of symbols by the tables, with slopes in mean and scale index from their neighbours."""

    def __init__(self, tables: TableSet) -> None:
        super().__init__()
        residuals = torch.arange(-RADIUS, RADIUS + 1)
        rows = np.arange(len(tables))[:, None]
        bits = tables.bits(residuals.numpy()[None, :], rows).astype(np.float32)
        self.count = tables.scale_count
        self.grid = torch.from_numpy(bits).reshape(self.count, FRACTIONS, -1)
        scale = torch.arange(self.count)[:, None, None].expand(-1, FRACTIONS, 2 * RADIUS + 1)
        mean = (torch.arange(FRACTIONS) - FRACTIONS // 2)[None, :, None].expand_as(scale)
        symbols = residuals[None, None, :].expand_as(scale)
        value = self.at(symbols, mean, scale)
        up = self.at(symbols, mean, (scale + 1).clamp(max=self.count - 1))
        down = self.at(symbols, mean, (scale - 1).clamp(min=0))
        right, left = self.at(symbols, mean + 2, scale), self.at(symbols, mean - 2, scale)
        slopes = (value, (up - down) / 2, (right - left) / 4)
        self.register_buffer("laws", torch.stack(slopes, dim=3).reshape(-1, 3))

    def _split(self, symbols: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        offset = torch.floor((mean + FRACTIONS // 2) / FRACTIONS)
        part = mean - offset * FRACTIONS + FRACTIONS // 2
        return part.long(), (symbols - offset).clamp(-RADIUS, RADIUS).long() + RADIUS

    def at(self, symbols: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Integer-valued mean (eighths) and scale index: what the coder pays."""
        part, column = self._split(symbols, mean)
        return self.grid[scale.long(), part, column]

    def forward(self, symbols: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Bits, of the shape of all three; outside the clamps slopes still point back inside."""
        held_mean = mean.detach().clamp(-500, 500).round()
        held_scale = scale.detach().clamp(0, self.count - 1).round()
        part, column = self._split(symbols, held_mean)
        index = (held_scale.long() * FRACTIONS + part) * (2 * RADIUS + 1) + column
        value, slope_scale, slope_mean = self.laws[index].unbind(-1)
        if not torch.is_grad_enabled():
            return value
        return (
            value
            + slope_scale * (scale - scale.detach())
            + slope_mean * (mean - mean.detach())
        )


def fit_base(data: SymbolSet, cost: TableCost) -> dict[str, npt.NDArray[np.int64]]:
    """Best mean (eighths) and scale index of each symbol at each rate, [9, 2, n] of each part.

    Alone, this is the factorised model.
    """
    base = {}
    for name, values in data.parts.items():
        flat = values.reshape(len(values), -1).astype(np.int64)
        laws = np.zeros((RATE_COUNT, 2, flat.shape[1]), np.int64)
        for rate in range(RATE_COUNT):
            laws[rate] = _fit(flat[data.rate == rate + 1], cost)
        base[name] = laws
    return base


def _fit(symbols: npt.NDArray[np.int64], cost: TableCost) -> npt.NDArray[np.int64]:
    """symbols: [m, n] of one rate -> [2, n]."""
    n = symbols.shape[1]
    counts = np.zeros((n, 2 * RADIUS + 1), np.float32)
    for row in symbols:
        counts[np.arange(n), np.clip(row, -RADIUS, RADIUS) + RADIUS] += 1
    counts[:, [RADIUS - 1, RADIUS + 1]] += PSEUDO_COUNT
    counts[:, RADIUS] += 1
    shrunk = symbols.sum(axis=0) / (len(symbols) + 4.0)
    mean = np.floor(8 * shrunk + 0.5).astype(np.int64)
    best = np.zeros((2, n), np.int64)
    best_bits = np.full(n, np.inf)
    scales = torch.arange(cost.count)[:, None]
    values = torch.arange(-RADIUS, RADIUS + 1)[None, :]
    for centre in np.unique(np.concatenate((mean, [0]))):
        here = np.flatnonzero((mean == centre) | (centre == 0))
        bits = cost.at(values, torch.full((1, 1), int(centre)), scales).numpy()  # [scales, R]
        total = counts[here] @ bits.T  # [k, scales]
        scale = total.argmin(axis=1)
        won = total[np.arange(len(here)), scale] < best_bits[here]
        here, scale, total = here[won], scale[won], total[won]
        best_bits[here] = total[np.arange(len(here)), scale]
        best[0, here], best[1, here] = centre, scale
    return best


def fit_units(
    data: SymbolSet, gains: Mapping[str, npt.NDArray[np.float32]]
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, npt.NDArray[np.int64]]]:
    """Integer units [9, n] (of a spatial code [9, C]) of symbols as inputs and of laws as means.

    Both stand for the same deviation of a latent, so that networks work on latents, whatever the
    rate. `gains`: symbols of a latent of 1, float [9, n].
    """
    inputs, outputs = {}, {}
    for name, values in data.parts.items():
        gain = gains[name].astype(np.float64)
        picked = data.rate >= 6
        flat = values[picked].astype(np.float64)
        flat = flat - flat.mean(axis=0)
        spread = gain[data.rate[picked] - 1]
        if values.ndim == 4:
            deviation = np.sqrt(((flat / spread[:, :, None, None]) ** 2).mean(axis=(0, 2, 3)))
        else:
            deviation = np.sqrt(((flat / spread) ** 2).mean(axis=0))
        scaled = gain * np.maximum(deviation, 1e-9)  # [9, n] deviation in symbols
        inputs[name] = np.clip(np.rint(16 * INPUT_DEVIATION / scaled), 1, UNIT_MAX).astype(np.int64)
        outputs[name] = np.clip(np.rint(32 * scaled), 0, UNIT_MAX).astype(np.int64)
    return inputs, outputs


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
            law = _rounded(self.base[name] * 8.0)[rate]
            bits[name] = cost(values.flatten(1), law[:, 0], law[:, 1]).sum(dim=1)
        return bits


def _rounded(x: Tensor) -> Tensor:
    """Nearest integers, halves up, with the gradient of the identity."""
    return x + (torch.floor(x + 0.5) - x).detach()
