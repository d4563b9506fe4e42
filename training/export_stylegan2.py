"""The two ONNX graphs that serve a prior: the built-in generator, or an integrator's StyleGAN2.

    generator_low.onnx    styles -> features [N, C, 32, 32]
    generator_high.onnx   styles, features -> preview [N, 3, 64, 64], image_128, ... image_S

Belongs here: the graphs of a StyleGAN2, and the check of either against torch. The built-in
generator's graphs are written by `training.generator_export`; `sfic.generator` runs both kinds.

StyleGAN2's RGB outputs below 32x32 are made again in the second graph: a small part of the whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sfic.generator import OnnxGenerator
from sfic.networks.codec import CORRECTED
from sfic.networks.generator import Generator
from sfic.networks.prior import StylePrior, output_sizes
from sfic.networks.stylegan2 import StyleGAN2
from training.export import export
from training.generator_export import HIGH, LOW, export_generator

__all__ = ["export_prior", "largest_difference"]


class _Low(nn.Module):
    def __init__(self, generator: StyleGAN2) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, styles: Tensor) -> Tensor:
        return self.generator.features(styles, CORRECTED)


class _High(nn.Module):
    def __init__(self, generator: StyleGAN2) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, styles: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        # Layers that the pictures share are traced once for each and merged by ONNX Runtime.
        preview = self.generator.head(features, styles, CORRECTED)
        images = (
            self.generator.preview_from_features(features, styles, CORRECTED, size)
            for size in output_sizes(self.generator.resolution)
        )
        return preview, *images


def export_prior(prior: StylePrior, folder: Path) -> None:
    """Write both graphs of either kind of generator, weights in half precision where it helps."""
    if isinstance(prior, Generator):
        export_generator(prior, folder)
        return
    if not isinstance(prior, StyleGAN2):
        raise TypeError(f"no exporter for {type(prior).__name__}")
    styles = torch.zeros(2, prior.num_styles, prior.style_dim)
    features = torch.zeros(2, prior.channels[CORRECTED], CORRECTED, CORRECTED)
    export(_Low(prior), {"styles": styles}, ("features",), folder / LOW)
    images = tuple(f"image_{size}" for size in output_sizes(prior.resolution))
    inputs = {"styles": styles, "features": features}
    export(_High(prior), inputs, ("preview", *images), folder / HIGH)


@torch.no_grad()
def largest_difference(prior: StylePrior, folder: Path, styles: Tensor) -> float:
    """Largest difference between the graphs in `folder` and torch, over all outputs.

    styles: float32 [N, num_styles, style_dim], drawn as faces are. The pictures are about [-1, 1].
    """
    threads = torch.get_num_threads()
    served = OnnxGenerator(folder / LOW, folder / HIGH, provider="cpu", threads=threads)
    given = styles.numpy()
    expected = prior.features(styles, CORRECTED)
    features = served.features(given)
    pairs = [(served.preview(given, features), prior.head(expected, styles, CORRECTED))]
    for size in output_sizes(prior.resolution):
        picture = prior.preview_from_features(expected, styles, CORRECTED, size)
        pairs.append((served.image(given, features, size), picture))
    return max(float(np.abs(made - wanted.numpy()).max()) for made, wanted in pairs)
