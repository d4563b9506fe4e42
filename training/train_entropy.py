"""Train the entropy model on the symbols of a trained codec.

    python -m training.train_entropy --checkpoint ... --out models/ --minutes 12

The loss is the cost in bits by the very frequency tables that the range coder uses. Most steps are
taken without roundings and in bfloat16, the last with weights and activations rounded as they will
be in `sfic.entropy`, so that integer and float cost the same. `--model factorised`
trains what the transformer is compared with; it writes no model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sfic.entropy.model import GROUP, SPATIAL, VECTORS, EntropyModel, LayerSymbols
from sfic.entropy.tables import default_scales, gaussian_tables
from training.codec_checkpoint import (
    RATE_COUNT,
    SymbolSet,
    collect_symbols,
    gain_tables,
    load_codec,
    load_generator,
)
from training.codec_data import identity_targets
from training.data import cache_dir, picture_array, read_index
from training.entropy_base import FRACTIONS, Factorised, TableCost, fit_base, fit_units
from training.entropy_network import EntropyTransformer

# More steps cost a pass of the network each. Measured with linear predictors: see
# docs/decisions/entropy-transformer.md.
STEPS_OF = {"basic": 4, "middle": 1, "enhanced": 1}
# Channels in each group of a spatial code, liveliest first; a last has the rest.
CHANNEL_GROUPS = {"coarse": (2, 4), "fine": (4, 8)}
DEV_PICTURES = 300


def as_batch(
    data: SymbolSet, index: npt.NDArray[np.int64]
) -> tuple[dict[str, Tensor], Tensor]:
    """Symbols as floats, and rates 0..8."""
    parts = {k: torch.from_numpy(v[index].astype(np.float32)) for k, v in data.parts.items()}
    return parts, torch.from_numpy(data.rate[index] - 1)


def evaluate(model: nn.Module, cost: TableCost, data: SymbolSet) -> dict[str, list[float]]:
    """Mean bytes of each part by rate, and of all."""
    sums = {k: np.zeros(RATE_COUNT) for k in data.parts}
    model.eval()
    with torch.no_grad():
        for start in range(0, len(data.rate), 32):
            index = np.arange(start, min(start + 32, len(data.rate)))
            parts, rate = as_batch(data, index)
            for name, bits in model(parts, rate, cost).items():
                np.add.at(sums[name], data.rate[index] - 1, bits.numpy() / 8)
    model.train()
    count = np.maximum(np.bincount(data.rate - 1, minlength=RATE_COUNT), 1)
    sums["all"] = sum(sums.values(), np.zeros(RATE_COUNT))
    means = {k: [round(float(x), 1) for x in v / count] for k, v in sums.items()}
    means["mean"] = [round(float(sums["all"].sum() / count.sum()), 2)]
    return means


def collect(
    args: argparse.Namespace,
) -> tuple[dict[str, SymbolSet], dict[str, npt.NDArray[np.float32]]]:
    """Symbols of the training and dev pictures; kept in `--symbols` when that is given."""
    codec = load_codec(args.checkpoint)
    checkpoint = hashlib.sha256(args.checkpoint.read_bytes()).hexdigest()
    gains = gain_tables(codec)
    sets: dict[str, SymbolSet] = {}
    for split, each, limit in (
        ("train", args.rates_each, args.limit),
        ("dev", 2, DEV_PICTURES),
    ):
        path = args.symbols / f"{split}.npz" if args.symbols else None
        source = f"{checkpoint} {each} {limit}"
        kept = SymbolSet.load(path, source) if path else None
        if kept:
            sets[split] = kept
            continue
        pictures = picture_array(read_index(split), 256, split)
        faceres = cache_dir() / "teachers" / "faceres.safetensors"
        embeddings = identity_targets(split, faceres)["embedding"]
        if limit:
            chosen = np.random.default_rng(0).permutation(len(pictures))[:limit]
            pictures, embeddings = pictures[chosen], embeddings[chosen]
        sets[split] = collect_symbols(
            codec, load_generator(), pictures, embeddings, args.input, each,
            flips=split == "train", quick=split == "train",
        )
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            sets[split].save(path, source)
    return sets, gains


def sizes_of(data: SymbolSet) -> dict[str, tuple[int, ...]]:
    """Sizes of the parts."""
    return {name: tuple(values.shape[1:]) for name, values in data.parts.items()}


def steps_of(sizes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Tokens in each step, as 3 : 5 : 7 : 9: the more is known, the more can be said at once."""
    steps = {}
    for part in VECTORS:
        tokens, count = sizes[part][0] // GROUP, STEPS_OF[part]
        ends = [round(tokens * (i + 1) * (i + 3) / (count * (count + 2))) for i in range(count)]
        steps[part] = tuple(int(x) for x in np.diff([0, *ends]))
    return steps


def channel_groups(data: SymbolSet, part: str) -> npt.NDArray[np.int64]:
    """The group of each channel of a spatial code, the liveliest first."""
    deviation = data.parts[part].astype(np.float32).std(axis=(0, 2, 3))
    ends = np.cumsum(CHANNEL_GROUPS[part])
    groups = np.empty(len(deviation), np.int64)
    groups[np.argsort(-deviation)] = np.searchsorted(ends, np.arange(len(deviation)), "right")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def train(
    model: nn.Module, cost: TableCost, data: SymbolSet, dev: SymbolSet, args: argparse.Namespace
) -> None:
    """Move the model by `--steps` steps, or for `--minutes`, whichever ends first."""
    base = [p for n, p in model.named_parameters() if n.startswith("base.")]
    net = [p for n, p in model.named_parameters() if not n.startswith("base.")]
    groups = [{"params": base, "lr": args.lr_base, "weight_decay": 0.0}]
    if net:
        groups.append({"params": net, "lr": args.lr, "weight_decay": args.decay})
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    start_rates = [group["lr"] for group in optimiser.param_groups]
    usual = torch.zeros(RATE_COUNT)
    counted = torch.zeros(RATE_COUNT)
    rng = np.random.default_rng(args.seed)
    begin = time.monotonic()
    model.train()
    transformer = model if isinstance(model, EntropyTransformer) else None
    if transformer:
        transformer.set_exact(False)
    order = np.empty(0, np.int64)
    for step in range(args.steps):
        done = max(step / args.steps, (time.monotonic() - begin) / (60 * args.minutes))
        if done >= 1.0:
            break
        if transformer and not transformer.exact and done >= 1.0 - args.exact:
            transformer.set_exact(True)
        factor = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-3
        for group, rate0 in zip(optimiser.param_groups, start_rates, strict=True):
            group["lr"] = rate0 * factor
        if len(order) < args.batch:
            order = rng.permutation(len(data.rate))
        index, order = order[: args.batch], order[args.batch :]
        parts, rate = as_batch(data, index)
        bits = model(parts, rate, cost)
        total = torch.stack(list(bits.values())).sum(dim=0)  # [n]
        with torch.no_grad():
            usual.index_add_(0, rate, total)
            counted.index_add_(0, rate, torch.ones_like(total))
        # A tenth less counts the same at every rate, with some weight on bytes as such.
        weight = 1.0 / (usual / counted.clamp_min(1))[rate] + 1.0 / (usual.sum() / counted.sum())
        loss = (total * weight).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net or base, 1.0)
        optimiser.step()
        if step % args.log_every == args.log_every - 1:
            line: dict[str, object] = {"step": step + 1, "s": round(time.monotonic() - begin)}
            line |= {k: round(float(v.detach().mean()) / 8, 1) for k, v in bits.items()}
            if args.dev_every and (step + 1) % args.dev_every == 0:
                line |= {"dev": evaluate(model, cost, dev)["mean"]}
            print(json.dumps(line), flush=True)
    if transformer:
        transformer.set_exact(True)
    model.eval()


def difference(
    model: EntropyModel, network: EntropyTransformer, cost: TableCost, data: SymbolSet, count: int
) -> float:
    """Largest difference in bits of a part between the integer model and the one trained."""
    worst = 0.0
    with torch.no_grad():
        parts, rate = as_batch(data, np.arange(count))
        expected = network(parts, rate, cost)
    for i in range(count):
        symbols = LayerSymbols({k: v[i].astype(np.int32) for k, v in data.parts.items()})
        for layer in VECTORS:
            for part, bits in model.bits(layer, int(data.rate[i]), symbols).items():
                worst = max(worst, abs(float(bits.sum()) - float(expected[part][i])))
    return worst


def build(
    args: argparse.Namespace,
    data: SymbolSet,
    cost: TableCost,
    gains: dict[str, npt.NDArray[np.float32]],
) -> nn.Module:
    """The model that `--model` names, at its start, or as `--init` left it."""
    if args.init:
        return EntropyTransformer.from_arrays(dict(np.load(args.init))).requires_grad_(True)
    base, sizes = fit_base(data, cost), sizes_of(data)
    if args.model == "factorised":
        return Factorised(base)
    inputs, outputs = fit_units(data, gains)
    return EntropyTransformer(
        sizes, base, inputs, outputs, steps_of(sizes),
        {part: channel_groups(data, part) for part in SPATIAL},
        width=args.width, vector_blocks=args.vector_blocks,
        spatial_blocks=args.spatial_blocks, dropout=args.dropout,
    )


def fit(
    args: argparse.Namespace,
    sets: dict[str, SymbolSet],
    gains: dict[str, npt.NDArray[np.float32]],
) -> dict[str, Any]:
    """Train the model that `args` (see `options`) name, and write it to `args.out`.

    Returns bytes by rate on the dev symbols, the mean without roundings (what integers cost), and
    how far the integers of the product are from those of training.
    """
    torch.manual_seed(args.seed)
    tables = gaussian_tables(default_scales(), FRACTIONS)
    cost = TableCost(tables)
    model = build(args, sets["train"], cost, gains)
    report: dict[str, Any] = {
        "model": args.model,
        "parameters": sum(p.numel() for n, p in model.named_parameters() if "base." not in n),
        "dev_bytes_by_rate_at_start": evaluate(model, cost, sets["dev"]),
    }
    train(model, cost, sets["train"], sets["dev"], args)
    report["dev_bytes_by_rate"] = evaluate(model, cost, sets["dev"])
    model.eval()
    if isinstance(model, EntropyTransformer):
        model.set_exact(False)
        report["dev_bytes_without_roundings"] = evaluate(model, cost, sets["dev"])["mean"]
        model.set_exact(True)
        model.eval()
        arrays = model.arrays() | {f"gain.{k}": v for k, v in gains.items()}
        args.out.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(args.out / "entropy.npz", **arrays)
        tables.save(args.out / "tables.npz")
        served = EntropyModel.from_arrays(arrays, tables)
        count = min(16, len(sets["dev"].rate))
        report["largest_difference_integer_to_training_bits"] = difference(
            served, model, cost, sets["dev"], count
        )
    return report


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--input", type=int, default=128, help="side of the encoder's input")
    parser.add_argument(
        "--model", choices=("transformer", "factorised"), default="transformer"
    )
    parser.add_argument("--init", type=Path, help="entropy.npz of a codec alike to go on from")
    parser.add_argument("--symbols", type=Path, help="folder that keeps the collected symbols")
    parser.add_argument("--rates-each", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="use only so many training pictures")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=12.0, help="of training, at most")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--lr-base", type=float, default=4e-3)
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--vector-blocks", type=int, default=2)
    parser.add_argument("--spatial-blocks", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--exact", type=float, default=0.15, help="share of it with roundings")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--dev-every", type=int, default=0)
    parser.add_argument("--seed", type=int, default=5)
    return parser.parse_args(argv)


def main() -> None:
    """Command line."""
    args = options()
    sets, gains = collect(args)
    report = fit(args, sets, gains)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"report-{args.model}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
