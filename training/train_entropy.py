"""Train the integer entropy model on the symbols of a trained codec.

    python -m training.train_entropy --checkpoint ... --out models/

The loss is the cost in bits by the very frequency tables that the range coder uses, interpolated
between neighbouring tables; weights and activations are rounded in training as they will be in
`sfic.entropy.model`, so integer and float cost the same.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sfic.entropy.model import (
    ACTIVATION_MAX,
    SYMBOL_CLIP,
    EntropyModel,
    LayerSymbols,
    checkerboard,
)
from sfic.entropy.tables import RADIUS, TableSet, default_scales, gaussian_tables
from training.codec_checkpoint import (
    RATE_COUNT,
    SymbolSet,
    collect_symbols,
    gain_tables,
    load_codec,
    load_generator,
)
from training.data import cache_dir, picture_array, read_index

FRACTIONS = 8
SUMMARY = 48


def round_ste(x: Tensor) -> Tensor:
    """Round to nearest, halves up, with the gradient of the identity."""
    return x + (torch.floor(x + 0.5) - x).detach()


class RoundedNet(nn.Module):
    """The float twin of `IntegerNet`: activations in sixteenths, weights in 1/64."""

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

    def integers(self) -> tuple[list[npt.NDArray[np.int8]], list[npt.NDArray[np.int32]]]:
        weights = [self.weight_units(i).detach().numpy() for i in range(len(self.weights))]
        biases = [self.bias_units(i).detach().numpy() for i in range(len(self.biases))]
        return [w.astype(np.int8) for w in weights], [b.astype(np.int32) for b in biases]


class TableCost(nn.Module):
    """Bits of symbols as a piecewise linear function of mean and scale index."""

    def __init__(self, tables: TableSet) -> None:
        super().__init__()
        residuals = np.arange(-RADIUS, RADIUS + 1)
        bits = tables.bits(residuals[None, :], np.arange(len(tables))[:, None])
        self.count = tables.scale_count
        grid = torch.from_numpy(bits.astype(np.float32))
        self.register_buffer("grid", grid.reshape(self.count, FRACTIONS, -1))

    def at(self, symbols: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Integer-valued mean (eighths) and scale index: exactly what the coder pays."""
        offset = torch.floor((mean + FRACTIONS // 2) / FRACTIONS)
        part = (mean - offset * FRACTIONS + FRACTIONS // 2).long()
        residual = (symbols - offset).clamp(-RADIUS, RADIUS).long() + RADIUS
        return self.grid[scale.long(), part, residual]

    def forward(self, symbols: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Straight-through: the value at the rounded point, slopes from its neighbours."""
        mean = mean.clamp(-500, 500)
        scale_in = scale.clamp(0, self.count - 1)
        m, s = mean.detach(), scale_in.detach()
        with torch.no_grad():
            value = self.at(symbols, m, s)
            up = self.at(symbols, m, (s + 1).clamp(max=self.count - 1))
            down = self.at(symbols, m, (s - 1).clamp(min=0))
            right, left = self.at(symbols, m + 2, s), self.at(symbols, m - 2, s)
            slope_s, slope_m = (up - down) / 2, (right - left) / 4
        # Outside the clamp the slope still points back inside.
        return value + slope_s * (scale - scale.detach()) + slope_m * (mean - m)


class EntropyNets(nn.Module):
    """All networks and base tables, in float with the roundings of the integer model."""

    def __init__(self, sizes: dict[str, tuple[int, ...]], start_scale: float) -> None:
        super().__init__()
        b, m, e = (sizes[k][0] for k in ("basic", "middle", "enhanced"))
        c, s, _ = sizes["spatial"]
        self.sizes = sizes
        self.base = nn.ParameterDict()
        for name, size in sizes.items():
            start = torch.zeros(RATE_COUNT, 2, int(np.prod(size)))
            start[:, 1] = start_scale / 8.0
            self.base[name] = nn.Parameter(start)
        self.nets = nn.ModuleDict(
            {
                "middle": RoundedNet((b, 256, 2 * m)),
                "enhanced": RoundedNet((b + m, 256, 2 * e)),
                "summary": RoundedNet((b + m + e, 128, SUMMARY)),
                "first": RoundedNet((SUMMARY + c, 64, 2 * c)),
                "second": RoundedNet((SUMMARY + 5 * c, 96, 2 * c)),
            }
        )
        self.register_buffer("first_cells", torch.from_numpy(checkerboard(s)))

    def base_units(self, name: str, rate: Tensor) -> Tensor:
        """[n, 2, size]: mean in eighths, scale index."""
        return round_ste(self.base[name] * 8.0)[rate]

    def forward(
        self, parts: dict[str, Tensor], rate: Tensor, cost: TableCost
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

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """What `EntropyModel.from_arrays` reads."""
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for name, net in self.nets.items():
            weights, biases = net.integers()
            arrays[f"{name}.layers"] = np.array(len(weights))
            for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                arrays[f"{name}.weight{i}"], arrays[f"{name}.bias{i}"] = weight, bias
        for name, value in self.base.items():
            arrays[f"base.{name}"] = torch.floor(value.detach() * 8 + 0.5).int().numpy().astype(np.int16)
            arrays[f"size.{name}"] = np.array(self.sizes[name])
        return arrays


def as_batch(data: SymbolSet, index: npt.NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor]:
    parts = {k: torch.from_numpy(v[index].astype(np.float32)) for k, v in data.parts.items()}
    return parts, torch.from_numpy(data.rate[index] - 1)


def evaluate(nets: EntropyNets, cost: TableCost, data: SymbolSet) -> dict[str, list[float]]:
    """Mean bytes of each part by rate."""
    sums = {k: np.zeros(RATE_COUNT) for k in data.parts}
    with torch.no_grad():
        for start in range(0, len(data.rate), 64):
            index = np.arange(start, min(start + 64, len(data.rate)))
            parts, rate = as_batch(data, index)
            for name, bits in nets(parts, rate, cost).items():
                np.add.at(sums[name], data.rate[index] - 1, bits.numpy() / 8)
    count = np.maximum(np.bincount(data.rate - 1, minlength=RATE_COUNT), 1)
    return {k: [round(float(x), 1) for x in v / count] for k, v in sums.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--input", type=int, default=128, help="side of the encoder's input")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rates-each", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="use only so many training pictures")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    codec, generator = load_codec(args.checkpoint), load_generator()
    folder = cache_dir() / "symbols"
    folder.mkdir(exist_ok=True)
    sets: dict[str, SymbolSet] = {}
    for split, each, limit in (("train", args.rates_each, args.limit), ("dev", 2, 300)):
        pictures = picture_array(read_index(split), 256, split)
        if limit:
            pictures = pictures[np.random.default_rng(0).permutation(len(pictures))[:limit]]
        sets[split] = collect_symbols(
            codec, generator, pictures, args.input, each, flips=split == "train"
        )
    train, dev = sets["train"], sets["dev"]
    tables = gaussian_tables(default_scales(), FRACTIONS)
    cost = TableCost(tables)
    s = codec.shape
    side = s.spatial_size
    sizes: dict[str, tuple[int, ...]] = {
        "basic": (s.basic,),
        "middle": (s.middle,),
        "enhanced": (s.enhanced,),
        "spatial": (s.spatial_channels, side, side),
    }
    start_scale = float(tables.scale_index(0.7))
    nets = EntropyNets(sizes, start_scale)
    base = list(nets.base.parameters())
    optimiser = torch.optim.Adam(
        [{"params": base, "lr": 0.05}, {"params": list(nets.nets.parameters()), "lr": 2e-3}]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [0.05, 2e-3], total_steps=args.steps, pct_start=0.1
    )
    rng = np.random.default_rng(args.seed)
    begin = time.monotonic()
    for step in range(args.steps):
        index = rng.integers(0, len(train.rate), 48)
        parts, rate = as_batch(train, index)
        bits = nets(parts, rate, cost)
        loss = sum(bits.values(), torch.zeros(())).mean() / 1000
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            line = {k: round(float(v.detach().mean()) / 8, 1) for k, v in bits.items()}
            print(json.dumps({"step": step + 1, "s": round(time.monotonic() - begin), **line}), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    arrays = nets.arrays() | {f"gain.{k}": v for k, v in gain_tables(codec).items()}
    np.savez_compressed(args.out / "entropy.npz", **arrays)
    tables.save(args.out / "tables.npz")
    report = {"dev_bytes_by_rate": evaluate(nets, cost, dev)}
    model = EntropyModel.from_arrays(arrays, tables)
    check = 0.0
    with torch.no_grad():
        parts, rate = as_batch(dev, np.arange(16))
        expected = nets(parts, rate, cost)
    for i in range(16):
        symbols = LayerSymbols({k: v[i].astype(np.int32) for k, v in dev.parts.items()})
        costs: dict[str, float] = {}
        for layer in ("basic", "middle", "enhanced"):
            got = model.bits(layer, int(dev.rate[i]), symbols)
            costs |= {k: float(v.sum()) for k, v in got.items()}
        check = max(check, *(abs(costs[k] - float(expected[k][i])) for k in costs))
    report["largest_difference_integer_to_training_bits"] = check
    print(json.dumps(report))


if __name__ == "__main__":
    main()
