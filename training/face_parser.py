"""Face parsing of pixels, for training faces without a map of CelebAMask-HQ.

    python -m training.face_parser [--minutes 10]      # after convert_teachers

A feature pyramid on EfficientNet-lite0 is trained on the 850 training pictures that have a map, and
labels all others: heads that read parsing from the basic layer overfit to 850 faces. Writes
`SFIC_CACHE/teachers/train_parsing.npz`: `maps` uint8 [N, 64, 64], rows in the order of
`training.data.read_index`, true maps where there are any. It is a teacher: no part of a bundle.
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
import torch.nn.functional as F
from torch import Tensor, nn

from sfic.analysis import PARSING_CLASSES
from sfic.networks.efficientnet import EfficientNetLite0
from training.codec_data import resize, to_tensor
from training.data import cache_dir, picture_array, read_index
from training.train_heads import CLASS_WEIGHTS, FLIP_PARSING, UNKNOWN, parsing_maps

SIZE = 128  # of the pictures; maps are of stride 2
WIDTH = 64
BATCH = 16


class FaceParser(nn.Module):
    """Pictures [N, 3, 128, 128] in [-1, 1] -> logits of the classes [N, 19, 64, 64]."""

    def __init__(self, backbone: EfficientNetLite0) -> None:
        super().__init__()
        self.backbone = backbone
        channels = EfficientNetLite0.stage_channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) for c in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()
            )
            for _ in channels
        )
        self.out = nn.Conv2d(WIDTH, len(PARSING_CLASSES), 1)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.backbone.features(pictures)
        x: Tensor | None = None
        for feature, lateral, smooth in zip(
            reversed(maps), reversed(self.lateral), reversed(self.smooth), strict=True
        ):
            own = lateral(feature)
            if x is not None:
                own = own + F.interpolate(x, size=own.shape[2:], mode="bilinear")
            x = smooth(own)
        logits: Tensor = self.out(x)
        return logits


def mean_iou(found: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Mean intersection over union of all classes, and that of skin."""
    each = []
    for k in range(len(PARSING_CLASSES)):
        union = ((found == k) | (right == k)).sum()
        if union:
            each.append(((found == k) & (right == k)).sum() / union)
    skin = PARSING_CLASSES.index("skin")
    skins = ((found == skin) & (right == skin)).sum() / ((found == skin) | (right == skin)).sum()
    return float(np.mean(each)), float(skins)


def varied(pictures: Tensor, maps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirrored, moved, scaled, turned and recoloured a little; where nothing is seen: UNKNOWN."""
    n = len(pictures)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    scale, angle = torch.exp(uniform(-0.12, 0.12)), uniform(-0.15, 0.15)
    move = torch.stack((uniform(-0.08, 0.08), uniform(-0.08, 0.08)), dim=1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = (
        torch.stack((flip * cos, -sin, move[:, 0]), 1),
        torch.stack((flip * sin, cos, move[:, 1]), 1),
    )
    theta = torch.stack(rows, dim=1)  # [n, 2, 3]
    grid = F.affine_grid(theta, [n, 3, SIZE, SIZE], align_corners=False)
    seen = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    side = maps.shape[1]
    grid = F.affine_grid(theta, [n, 1, side, side], align_corners=False)
    # 0 is a class, too: one more, so that 0 says that nothing was there.
    turned = F.grid_sample(maps[:, None].float() + 1, grid, mode="nearest", align_corners=False)
    turned = torch.where(turned == 0, UNKNOWN, turned - 1)[:, 0].long()
    turned = torch.where(flip[:, None, None] < 0, torch.from_numpy(FLIP_PARSING)[turned], turned)
    gain = torch.stack([uniform(0.8, 1.2) for _ in range(3)], dim=1)[:, :, None, None]
    shift = uniform(-0.2, 0.2)[:, None, None, None]
    return (seen * gain + shift).clamp(-1, 1), turned


@torch.no_grad()
def parse(parser: FaceParser, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Maps uint8 [M, 64, 64] of pictures, uint8 [M, S, S, 3], and of their mirror images."""
    parser.eval()
    out = []
    for start in range(0, len(pictures), 32):
        part = resize(to_tensor(np.array(pictures[start : start + 32])), SIZE)
        logits = parser(part).softmax(dim=1)
        mirrored = parser(part.flip(3)).softmax(dim=1).flip(3)
        classes = torch.from_numpy(FLIP_PARSING[: len(PARSING_CLASSES)])
        out.append((logits + mirrored[:, classes]).argmax(dim=1).to(torch.uint8))
    return np.asarray(torch.cat(out))


def train(pictures: Tensor, maps: Tensor, backbone: Path, minutes: float, seed: int) -> FaceParser:
    """Fit to pictures [M, 3, 128, 128] and their maps uint8 [M, 64, 64]."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    parser = FaceParser(EfficientNetLite0.load(backbone))
    body = list(parser.backbone.parameters())
    known = {id(p) for p in body}
    rest = [p for p in parser.parameters() if id(p) not in known]
    optimiser = torch.optim.AdamW(
        [{"params": body, "share": 0.2}, {"params": rest, "share": 1.0}], weight_decay=0.05
    )
    begin, step = time.monotonic(), 0
    while (done := (time.monotonic() - begin) / (60 * minutes)) < 1:
        parser.train()
        rate = 2e-3 * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["share"]
        index = torch.randint(0, len(pictures), (BATCH,), generator=generator)
        seen, want = varied(pictures[index], maps[index], generator)
        loss = F.cross_entropy(
            parser(seen), want, weight=CLASS_WEIGHTS, ignore_index=UNKNOWN, label_smoothing=0.05
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        if step % 50 == 0:
            line = {"step": step, "s": round(time.monotonic() - begin), "loss": float(loss)}
            print(json.dumps(line), flush=True)
    return parser


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = cache_dir() / "teachers"
    rows = read_index("train")
    pictures, maps = picture_array(rows, 256, "train"), parsing_maps(rows)
    own = np.flatnonzero(maps[:, 0, 0].numpy() != UNKNOWN)
    small = resize(to_tensor(np.array(pictures[own])), SIZE)
    network = train(
        small, maps[own], folder / "efficientnet_lite0.safetensors", args.minutes, args.seed
    )
    dev = read_index("dev")
    right = parsing_maps(dev).numpy()
    held = np.flatnonzero(right[:, 0, 0] != UNKNOWN)
    iou, skin = mean_iou(parse(network, picture_array(dev, 256, "dev")[held]), right[held])
    print(json.dumps({"dev_faces": len(held), "mean_iou": round(iou, 3), "skin": round(skin, 3)}))
    found = parse(network, pictures)
    found[own] = maps[own].numpy()
    np.savez_compressed(folder / "train_parsing.npz", maps=found)


if __name__ == "__main__":
    main()
