"""Let the highest rate of a trained codec end at a given number of bytes.

    python -m training.fit_rates --checkpoint OLD.pt --out NEW.pt [--bytes 1400] [--styles 0.2]

Training holds the bits of its own, augmented faces to a budget, and only roughly. Here the spatial
code's gains and laws are read at rates up to some share of the highest, found by bisection over dev
pictures, so that all of them together cost the bytes asked for, by the factorised laws of training
(the entropy transformer needs some four fifths).

`--styles` ends the rates of the style layers at a share of theirs: at high rates the spatial code
says better what finer steps of the styles would.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfic.networks.codec import CORRECTED, LAYERS, FaceCodec, RateModel, at_rate
from sfic.networks.prior import StylePrior
from training.codec_checkpoint import load_codec, load_generator
from training.codec_data import identity_targets, resize, to_tensor
from training.data import cache_dir, picture_array, read_index


@torch.no_grad()
def end_at(codec: FaceCodec, share: float) -> None:
    """Make the spatial code's highest rate what `share` of it was, and those below accordingly."""
    for knots in (codec.gains["spatial"].knots, codec.spatial_laws):
        assert isinstance(knots, Tensor)
        knots.copy_(at_rate(knots.clone(), share * torch.linspace(0.0, 1.0, len(knots))))


@torch.no_grad()
def end_styles_at(codec: FaceCodec, share: float) -> None:
    """Make the highest rate of all style layers what `share` of it was; exact, laws included."""
    for name in LAYERS:
        knots, law = codec.gains[name].knots, codec.rates[name]
        assert isinstance(knots, Tensor) and isinstance(law, RateModel)
        knots.copy_(at_rate(knots.clone(), share * torch.linspace(0.0, 1.0, len(knots))))
        law.slope.mul_(share)
        if law.net is not None:
            law.net[0].weight[:, -1].mul_(share)  # the rate is the last input


def share_for(cost: Callable[[float], float], wanted: float, steps: int = 7) -> float:
    """The share of the highest rate at which `cost`, which rises, is `wanted`; at most 1."""
    low, high = 0.0, 1.0
    if cost(high) <= wanted:
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    return low


@torch.no_grad()
def coded_bytes(
    codec: FaceCodec, generator: StylePrior, crop: Tensor, embedding: Tensor, share: float
) -> float:
    """Mean bytes of crops [N, 3, 128, 128] at the highest rate, were its spatial code's `share`."""
    top = torch.ones(len(crop))
    coded = codec.code_styles(codec.analyse(crop, embedding), top, noise=False)
    styles = codec.whitening.to_styles(coded.coefficients["enhanced"])
    features = generator.features(styles, CORRECTED)
    preview = generator.head(features, styles, CORRECTED).clamp(-1.2, 1.2)
    _, spatial = codec.code_spatial(crop, features, preview, share * top, noise=False)
    return float((sum(coded.bits.values(), torch.zeros(())) + spatial).mean()) / 8


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bytes", type=float, default=1400.0)
    parser.add_argument("--styles", type=float, default=1.0, help="share of the styles' rates")
    parser.add_argument("--set", default="celebahq512png", help="of the dev pictures")
    parser.add_argument("--faces", type=int, default=16)
    args = parser.parse_args()
    codec, generator = load_codec(args.checkpoint), load_generator()
    rows = read_index("dev")
    chosen = [i for i, row in enumerate(rows) if row.set == args.set][: args.faces]
    pictures = np.array(picture_array(rows, 256, "dev")[chosen])
    faceres = cache_dir() / "teachers" / "faceres.safetensors"
    embedding = torch.from_numpy(identity_targets("dev", faceres)["embedding"][chosen])
    crop = resize(to_tensor(pictures), codec.shape.picture)

    end_styles_at(codec, args.styles)

    def cost(share: float) -> float:
        return coded_bytes(codec, generator, crop, embedding, share)

    share = share_for(cost, args.bytes)
    print(f"highest rate: {cost(1.0):.0f} bytes, at {share:.3f} of it {cost(share):.0f}")
    end_at(codec, share)
    state = torch.load(args.checkpoint, weights_only=True)
    weights = codec.state_dict()
    torch.save(
        {**state, "codec": weights, "average": weights, "shape": asdict(codec.shape)}, args.out
    )


if __name__ == "__main__":
    main()
