"""Give a trained codec fine channels: a transform of what its coarse spatial code leaves.

    python -m training.start_refinement --checkpoint OLD.pt --out NEW.pt

The transform starts as the Karhunen-Loeve transform of 8x8 blocks of the difference between faces
and the pictures of the coarse code, its quantiser steps equal for all channels, as for a block
codec; what makes the picture of it is then trained (`training.train_codec --init NEW.pt`).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfic.networks.codec import CodecShape, FaceCodec, at_rate
from sfic.networks.generator import Generator
from training.codec_checkpoint import LAYERS, load_generator, widened
from training.codec_data import identity_targets, resize, to_tensor
from training.data import cache_dir, picture_array, read_index

RATE = 0.5  # of the coarse code whose rest is looked at
# The coarse code's rate, and the quantiser step of the fine one in units of [-1, 1] x 8, at each
# knot: bits of the coarse code that bring nothing more go to the fine one.
COARSE = (0.0, 0.25, 0.5, 0.55, 0.6)
STEPS = (8.0, 4.0, 1.6, 0.7, 0.35)


@torch.no_grad()
def start_coarse(codec: FaceCodec) -> None:
    """Let the coarse channels' gains and laws end where more of their bits bring nothing."""
    rates, cells = torch.tensor(COARSE), codec.shape.coarse_channels * codec.shape.spatial_size**2
    gains = codec.gains["spatial"].knots[:, : codec.shape.coarse_channels]
    for values in (gains, codec.spatial_laws[:, :cells]):
        values.copy_(at_rate(values.clone(), rates))


@torch.no_grad()
def rests(codec: FaceCodec, generator: Generator, count: int) -> Tensor:
    """Faces minus the pictures of their coarse code, [count, 3, 128, 128]."""
    pictures = picture_array(read_index("train"), 256, "train")
    faceres = cache_dir() / "teachers" / "faceres.safetensors"
    embedding = identity_targets("train", faceres)["embedding"]
    chosen = np.linspace(0, len(pictures) - 1, count).astype(int)
    gain = codec.gains["spatial"](torch.tensor([RATE]))[:, :, None, None]
    gain = gain[:, : codec.shape.coarse_channels]
    result = []
    for start in range(0, count, 16):
        rows = chosen[start : start + 16]
        crop = resize(to_tensor(np.array(pictures[rows])), codec.shape.picture)
        z = codec.analyse(crop, torch.from_numpy(embedding[rows]))
        t = torch.full((len(rows),), RATE)
        latents = {name: codec.through(name, z[name], t, noise=False)[0] for name in LAYERS}
        styles = codec.whitening.to_styles(codec.coefficients(latents)["enhanced"])
        features = generator.features(styles, codec.shape.feature_size)
        preview = generator.head(features, styles, codec.shape.feature_size).clamp(-1.2, 1.2)
        code = (codec.spatial_analysis(crop, preview) * gain).round() / gain
        code = F.pad(code, (0, 0, 0, 0, 0, codec.shape.fine_channels))
        synthesis = codec.spatial_synthesis
        shown, _ = synthesis.draft(synthesis.mixed(code, features), code, preview)
        result.append(crop - shown)
    return torch.cat(result)


@torch.no_grad()
def start(codec: FaceCodec, rest: Tensor) -> None:
    """Set the fine channels' transform, quantiser and laws from rests [N, 3, 128, 128]."""
    s = codec.shape
    linear = codec.spatial_refinement.linear
    block, count = linear.kernel_size[0], s.fine_channels
    columns = F.unfold(rest, block, stride=block)  # [N, 3 block^2, cells]
    flat = columns.transpose(1, 2).reshape(-1, columns.shape[1]).double()
    mean = flat.mean(dim=0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    basis = vectors.flip(1)[:, :count].float()  # [3 block^2, C]
    scale = values.flip(0)[:count].sqrt().float()
    linear.weight.copy_(basis.T.reshape(linear.weight.shape))
    norm = codec.spatial_refinement.norm
    assert linear.bias is not None and norm.running_mean is not None
    assert norm.running_var is not None
    linear.bias.zero_()
    norm.running_mean.copy_(mean.float() @ basis)
    norm.running_var.copy_(scale.square())
    codec.spatial_synthesis.linear.weight.copy_((basis * scale)[:, :, None, None])
    codec.spatial_synthesis.fine.weight.zero_()  # what networks add to the transform: nothing yet
    gains = codec.gains["spatial"].knots[:, s.coarse_channels :]  # [K, C]
    gains.copy_((scale / torch.tensor(STEPS)[:, None]).log())
    z = torch.einsum("nkc,kf->nfc", columns, basis / scale)  # [N, C, cells]
    spread = (0.55 * z.std(dim=0)).clamp_min(0.05).log()  # [C, cells], of a logistic law
    first = s.coarse_channels * s.spatial_size**2
    codec.spatial_laws[:, first:] = (spread + gains[:, :, None]).flatten(1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--faces", type=int, default=600)
    args = parser.parse_args()
    torch.manual_seed(0)
    state = torch.load(args.checkpoint, weights_only=True)
    codec = FaceCodec(CodecShape())
    codec.load_state_dict(widened(state["average"], codec))
    codec.eval()
    start(codec, rests(codec, load_generator(), args.faces))
    start_coarse(codec)
    weights = codec.state_dict()
    torch.save(
        {**state, "codec": weights, "average": weights, "shape": asdict(codec.shape)}, args.out
    )


if __name__ == "__main__":
    main()
