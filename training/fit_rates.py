"""Let the rates of a trained codec begin and end at given numbers of bytes.

    python -m training.fit_rates --checkpoint OLD.pt --out NEW.pt [--bytes 1400] [--least 95]
        [--styles 0.2]

Training holds the bits of its own, augmented faces to a budget, and only roughly. Here the spatial
code's gains and laws are read at rates up to some share of the highest, found by bisection over dev
pictures, so that all of them together cost the bytes asked for, by the factorised laws of training
(the entropy transformer needs some four fifths). `--least` does the same for the lowest rate, whose
steps may be coarser than any that were trained.

`--styles` ends the rates of the style layers at a share of theirs: at high rates the spatial code
says better what finer steps of the styles would.
"""

from __future__ import annotations

import argparse
import copy
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


def beyond(knots: Tensor, t: Tensor) -> Tensor:
    """`at_rate`, going on below 0 as between the first two knots."""
    below = t.clamp(max=0).reshape(-1, *([1] * (knots.ndim - 1)))
    return at_rate(knots, t.clamp(min=0)) + (len(knots) - 1) * below * (knots[1] - knots[0])


@torch.no_grad()
def end_at(codec: FaceCodec, share: float, first: float = 0.0) -> None:
    """Make the spatial code's rates 0..1 what `first` to `share` were."""
    for knots in (codec.gains["spatial"].knots, codec.spatial_laws):
        assert isinstance(knots, Tensor)
        knots.copy_(beyond(knots.clone(), torch.linspace(first, share, len(knots))))


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


def share_for(
    cost: Callable[[float], float],
    wanted: float,
    low: float = 0.0,
    high: float = 1.0,
    steps: int = 7,
) -> float:
    """Where between `low` and `high` a cost, which rises, is `wanted`; an end if it is beyond."""
    if cost(high) <= wanted:
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    return low


@torch.no_grad()
def coded_bytes(
    codec: FaceCodec, generator: StylePrior, crop: Tensor, embedding: Tensor, end: float
) -> float:
    """Mean bytes of crops [N, 3, 128, 128] at one end of the rates, 0 or 1."""
    t = torch.full((len(crop),), end)
    coded = codec.code_styles(codec.analyse(crop, embedding), t, noise=False)
    styles = codec.whitening.to_styles(coded.coefficients["enhanced"])
    features = generator.features(styles, CORRECTED)
    preview = generator.head(features, styles, CORRECTED).clamp(-1.2, 1.2)
    _, spatial = codec.code_spatial(crop, features, preview, t, noise=False)
    return float((sum(coded.bits.values(), torch.zeros(())) + spatial).mean()) / 8


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bytes", type=float, default=1400.0)
    parser.add_argument("--least", type=float, default=0.0, help="bytes of the lowest rate")
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
    trained = copy.deepcopy(codec.state_dict())

    def cost(first: float, share: float, end: float) -> float:
        """Bytes at an end of the rates, were they read from `first` to `share`."""
        codec.load_state_dict(trained)
        end_at(codec, share, first)
        return coded_bytes(codec, generator, crop, embedding, end)

    share = share_for(lambda x: cost(0.0, x, 1.0), args.bytes)
    first = 0.0
    if args.least:
        first = share_for(lambda x: cost(x, share, 0.0), args.least, -0.5, 0.2)
    ends = cost(first, share, 0.0), cost(first, share, 1.0)
    print(f"rates {first:.3f} to {share:.3f} of the old: {ends[0]:.0f} to {ends[1]:.0f} bytes")
    state = torch.load(args.checkpoint, weights_only=True)
    weights = codec.state_dict()
    torch.save(
        {**state, "codec": weights, "average": weights, "shape": asdict(codec.shape)}, args.out
    )


if __name__ == "__main__":
    main()
