"""Fitting of the generator's preview heads on synthetic faces.

Belongs here: the fitting set (crops of features and of what the full image looks like there), the
closed-form start, the optimisation, and the measurement. Not here: the heads' arithmetic
(`sfic.networks.generator.PreviewHead`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from sfic.networks.generator import (
    CHANNELS,
    HEAD_CHANNELS,
    IMAGE_SIZE,
    PREVIEW_SIZES,
    SLOPE,
    STYLES,
    Generator,
    MappingNetwork,
    PreviewHead,
)

CROP = 32
CROPS = {64: 1, 128: 1, 256: 2, 512: 4}  # from one face
CLIP = 1.2  # beyond this a picture is white or black anyway


@dataclass
class Crops:
    """Fitting set of one head: x [M, C, 34, 34] (a border of 1), y [M, 3, 64, 64], styles.

    x is bfloat16: halves the memory, and its rounding is far below what a head misses.
    """

    x: Tensor
    y: Tensor
    styles: Tensor  # [M, 16, 512]


def sample_styles(mapping: MappingNetwork, mean: Tensor, n: int, seed: int) -> Tensor:
    """Styles [N, 16, 512] as reconstructions have them: truncation 0.5 to 1, half of them mixed."""
    rng = torch.Generator().manual_seed(seed)
    w = mapping(torch.randn(2 * n, 512, generator=rng)).view(2, n, 512)
    w = mean + (w - mean) * (torch.rand(2, n, 1, generator=rng) * 0.5 + 0.5)
    cut = torch.randint(1, STYLES, (n, 1), generator=rng)
    cut[torch.rand(n, generator=rng) < 0.5] = STYLES
    first = torch.arange(STYLES)[None, :] < cut  # [N, 16]
    return torch.where(first[:, :, None], w[0][:, None], w[1][:, None])


@torch.no_grad()
def render_crops(generator: Generator, styles: Tensor, seed: int) -> dict[int, Crops]:
    """One fitting set for each size from full images of `styles` [N, 16, 512]."""
    rng = torch.Generator().manual_seed(seed)
    sets: dict[int, Crops] = {}
    for size in PREVIEW_SIZES:
        m = len(styles) * CROPS[size]
        x = torch.zeros(m, CHANNELS[size // 2], CROP + 2, CROP + 2, dtype=torch.bfloat16)
        sets[size] = Crops(
            x, torch.zeros(m, 3, 2 * CROP, 2 * CROP), styles.repeat_interleave(CROPS[size], dim=0)
        )
    for i in range(len(styles)):
        one = styles[i : i + 1]
        features = generator.features(one, PREVIEW_SIZES[0] // 2)
        kept: list[tuple[int, int, int, int]] = []
        for size in PREVIEW_SIZES:
            resolution = size // 2
            padded = F.pad(features, (1, 1, 1, 1))
            for k in range(i * CROPS[size], (i + 1) * CROPS[size]):
                top, left = torch.randint(0, resolution - CROP + 1, (2,), generator=rng).tolist()
                window = padded[0, :, top : top + CROP + 2, left : left + CROP + 2]
                sets[size].x[k] = window.bfloat16()
                kept.append((size, k, top, left))
            features = generator.advance(features, one, resolution, size)
        image = generator.from_features(features, one, PREVIEW_SIZES[-1])  # [1, 3, 1024, 1024]
        small = {size: F.avg_pool2d(image, IMAGE_SIZE // size)[0] for size in PREVIEW_SIZES}
        for size, k, top, left in kept:
            window = small[size][:, 2 * top : 2 * (top + CROP), 2 * left : 2 * (left + CROP)]
            sets[size].y[k] = window.clamp(-CLIP, CLIP)
    return sets


def start_linear(head: PreviewHead, crops: Crops) -> Tensor:
    """Start `head` at the least-squares linear map; returns a basis that whitens the features.

    The linear map passes both hidden layers as pairs of units with opposite signs; the units left
    over see random directions.
    """
    c, h = head.weight1.shape[1], head.weight1.shape[0]
    gram = torch.zeros(c + 1, c + 1, dtype=torch.float64)
    cross = torch.zeros(c + 1, 12, dtype=torch.float64)
    for start in range(0, len(crops.x), 8):
        x, y = crops.x[start : start + 8], crops.y[start : start + 8]
        flat = x[:, :, 1:-1, 1:-1].float().transpose(0, 1).flatten(1)  # [C, P]
        flat = torch.cat((flat, torch.ones_like(flat[:1])))  # [C + 1, P]
        gram += (flat @ flat.T).double()
        cross += (flat @ F.pixel_unshuffle(y, 2).transpose(0, 1).flatten(1).T).double()
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(c + 1, dtype=torch.float64)
    linear = torch.linalg.solve(gram + ridge, cross).float()  # [C + 1, 12]
    mean = (gram[-1, :-1] / gram[-1, -1]).float()  # [C]
    covariance = gram[:-1, :-1] / gram[-1, -1] - torch.outer(mean, mean).double()
    values, vectors = torch.linalg.eigh(covariance)
    basis: Tensor = (vectors / values.clamp_min(1e-4 * values.max()).sqrt()).float()  # [C, C]
    with torch.no_grad():
        for modulation in (head.modulation1, head.modulation2, head.modulation3):
            modulation.weight.zero_()
            modulation.bias.fill_(1.0)
        head.shift.weight.zero_()
        head.shift.bias.zero_()
        head.mixture.fill_(1.0 / len(head.mixture))
        weight1 = torch.randn(h, c) / math.sqrt(c) @ basis.T
        bias1 = -weight1 @ mean
        weight1[:24] = torch.cat((linear[:-1].T, -linear[:-1].T))
        bias1[:24] = torch.cat((linear[-1], -linear[-1]))
        head.weight1.copy_(weight1)
        head.bias1.copy_(bias1[:, None, None])
        head.depthwise.zero_()
        head.depthwise[:, 0, 1, 1] = 1.0
        undo = 1.0 / (1.0 + SLOPE)
        eye = torch.eye(12) * undo
        head.weight2.copy_(torch.randn(h, h) * 0.5 / math.sqrt(h))
        head.weight2[:24] = 0.0
        head.weight2[:24, :24] = torch.cat(
            (torch.cat((eye, -eye), dim=1), torch.cat((-eye, eye), dim=1))
        )
        head.bias2.zero_()
        head.weight3.copy_(torch.randn(12, h) * 0.01)
        head.weight3[:, :24] = torch.cat((eye, -eye), dim=1)
    return basis


def fit_head(
    size: int, crops: Crops, mean: Tensor, steps: int, seed: int, report: bool = False
) -> PreviewHead:
    """A head fitted to `crops` by least squares, then `steps` of Adam on the squared error.

    Works in whitened features and styles relative to their mean, where one learning rate fits all;
    both are multiplied into the weights at the end.
    """
    torch.manual_seed(seed)
    head = PreviewHead(size)
    basis = start_linear(head, crops)
    whitened = head.weight1.detach() @ torch.linalg.pinv(basis).T  # [H, C]
    whitened.requires_grad_()
    modulations = (head.modulation1, head.modulation2, head.modulation3, head.shift)
    slow = [m.weight for m in modulations] + [head.mixture]
    left = [p for p in head.parameters() if all(p is not q for q in (*slow, head.weight1))]
    fast = [whitened, *left]
    rate = 2e-3
    groups: list[dict[str, Any]] = [{"params": fast}, {"params": slow}]
    optimiser = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        decay = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group, factor in zip(optimiser.param_groups, (1.0, 0.1), strict=True):
            group["lr"] = rate * decay * factor
        index = torch.randint(0, len(crops.x), (8,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inputs = (crops.x[index], crops.styles[index] - mean)
            weight1 = {"weight1": whitened @ basis.T}
            out = functional_call(head, weight1, inputs)  # [8, 3, 68, 68]
        loss = (out[:, :, 2:-2, 2:-2].float() - crops.y[index]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if report and step % 100 == 99:
            print(f"head {size}: step {step + 1}, last loss {loss.item():.5f}", flush=True)
    with torch.no_grad():
        head.weight1.copy_(whitened @ basis.T)
        head.modulation1.bias.sub_(head.modulation1.weight @ mean)
        for modulation in modulations[1:]:
            modulation.bias.sub_(modulation.weight @ mean * head.mixture.sum())
    return head.requires_grad_(False)


@torch.no_grad()
def preview_psnr(generator: Generator, styles: Tensor) -> dict[int, float]:
    """Mean PSNR in dB (peak 2) of each preview against the 1024x1024 image averaged down."""
    totals = dict.fromkeys(PREVIEW_SIZES, 0.0)
    for i in range(len(styles)):
        one = styles[i : i + 1]
        features = generator.features(one, PREVIEW_SIZES[0] // 2)
        previews = {}
        for size in PREVIEW_SIZES:
            previews[size] = generator.head(features, one, size // 2).clamp(-1, 1)
            features = generator.advance(features, one, size // 2, size)
        image = generator.from_features(features, one, PREVIEW_SIZES[-1]).clamp(-1, 1)
        for size, preview in previews.items():
            error = (preview - F.avg_pool2d(image, IMAGE_SIZE // size)).square().mean().item()
            totals[size] += 10 * math.log10(4 / error) / len(styles)
    return totals


assert set(HEAD_CHANNELS) == set(CROPS) == set(PREVIEW_SIZES)
