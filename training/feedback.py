"""Feed what effort 3 finds back into effort 0: its symbols of training faces, and a loss on them.

    python -m training.feedback [--bundle models] [--faces 200] [--rates 3 5 7] [--effort 3]

Encodes training faces with the trained codec, as they are (not augmented), and keeps the symbols as
latents in `SFIC_CACHE/feedback-BUNDLE-EFFORT.npz`. A run of `training.train_codec` whose
configuration names that file (`feedback`, `feedback_faces`, `losses.feedback`; see
`training/configs/codec-v7-feedback.toml`) then draws the one-pass latents of some faces a step to
where they round to the same symbols, beside its other losses.

Resumable: what is kept is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from sfic.codec import Codec
from sfic.locations import models_dir
from sfic.networks.codec import CORRECTED, LAYERS, FaceCodec
from sfic.networks.prior import StylePrior
from training.codec_checkpoint import CODED, RATE_POSITIONS
from training.codec_data import resize, to_tensor
from training.data import cache_dir, picture_array, read_index

SAVED_EVERY = 8  # encodings


@dataclass(frozen=True)
class Found:
    """Encodings: row of the training pictures [M], rate 1..9 [M], latents float32 [M, ...]."""

    picture: npt.NDArray[np.int64]
    rate: npt.NDArray[np.int64]
    latents: dict[str, npt.NDArray[np.float32]]

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part.npz")
        np.savez(part, picture=self.picture, rate=self.rate, **self.latents)
        part.rename(path)

    @classmethod
    def load(cls, path: Path) -> Found:
        with np.load(path) as file:
            latents = {name: file[name] for name in CODED}
            return cls(file["picture"], file["rate"], latents)

    def draw(self, rng: np.random.Generator, count: int) -> Found:
        """`count` of them at random."""
        index = rng.integers(0, len(self.rate), count)
        latents = {name: values[index] for name, values in self.latents.items()}
        return Found(self.picture[index], self.rate[index], latents)


def feedback_loss(
    codec: FaceCodec,
    generator: StylePrior,
    found: Found,
    pictures: npt.NDArray[np.uint8],
    embeddings: npt.NDArray[np.float32],
    parts: Sequence[str] = CODED,
) -> Tensor:
    """How far one-pass values are from rounding to the symbols found, in squared steps, mean.

    `pictures`, `embeddings`: of all training faces. `parts`: those that are in training. The
    spatial code is compared beside the styles that were found, for which it was made.
    """
    crop = to_tensor(np.array(pictures[found.picture]))
    rows = torch.from_numpy(embeddings[found.picture]) if codec.shape.identity else None
    t = torch.from_numpy(RATE_POSITIONS[found.rate - 1]).float()
    wanted = {name: torch.from_numpy(values) for name, values in found.latents.items()}
    with torch.set_grad_enabled(any(name in LAYERS for name in parts)):
        have = codec.analyse(resize(crop, codec.shape.picture), rows)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latents = {name: wanted[name] for name in LAYERS}
        styles = codec.whitening.to_styles(codec.coefficients(latents)["enhanced"])
        features = generator.features(styles, CORRECTED)
        preview = generator.head(features, styles, CORRECTED).float().clamp(-1.2, 1.2)
    gain = codec.gains["spatial"](t)[:, :, None, None].detach()
    small = resize(crop, codec.shape.picture)
    both = codec.spatial_latents(small, features.float(), preview, gain)
    split = (codec.shape.coarse_channels,)
    have["coarse"], have["fine"] = both.tensor_split(split, dim=1)
    gains = {name: codec.gains[name](t).detach() for name in LAYERS}
    gains["coarse"], gains["fine"] = gain.tensor_split(split, dim=1)
    total = torch.zeros(())
    for name in parts:
        steps = gains[name]
        off = ((have[name] - wanted[name]) * steps).abs() - 0.5  # at most 0 where both round alike
        total = total + F.relu(off).square().mean()
    return total


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=models_dir())
    parser.add_argument("--faces", type=int, default=200)
    parser.add_argument("--rates", type=int, nargs="+", default=[3, 5, 7])
    parser.add_argument("--effort", type=int, choices=(1, 2, 3), default=3)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    codec = Codec.load(args.bundle, threads=args.threads)
    path = cache_dir() / f"feedback-{codec.model_bundle}-{args.effort}.npz"
    pictures = picture_array(read_index("train"), 256, "train")
    chosen = np.random.default_rng(0).permutation(len(pictures))[: args.faces]
    rows: list[tuple[int, int, dict[str, npt.NDArray[np.float32]]]] = []
    if path.exists():
        kept = Found.load(path)
        for i in range(len(kept.rate)):
            latents = {name: values[i] for name, values in kept.latents.items()}
            rows.append((int(kept.picture[i]), int(kept.rate[i]), latents))
    # A face over the limit of bytes is coded at a lower rate: its number counts, not its rates.
    jobs = [(int(i), rate) for i in chosen for rate in args.rates][len(rows) :]

    def save() -> None:
        picture, rate, latents = zip(*rows, strict=True)
        stacked = {name: np.stack([one[name] for one in latents]) for name in CODED}
        Found(np.array(picture), np.array(rate), stacked).save(path)

    for done, (picture, rate) in enumerate(track(jobs, "encoding"), 1):
        face = codec.encode(np.array(pictures[picture]), rate, args.effort)
        symbols, rate = codec.decode_symbols(face, "enhanced")
        latents = {k: codec._dequantise(k, v, rate)[0] for k, v in symbols.parts.items()}
        rows.append((picture, rate, latents))
        if done % SAVED_EVERY == 0 or done == len(jobs):
            save()
    print(path)


if __name__ == "__main__":
    main()
