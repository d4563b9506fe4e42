"""Efforts 2 and 3: gradient steps on a face's latents, through the networks that are served.

What belongs here: the objective and the steps. Rounding, choice of symbols and packets stay in
`sfic.codec`; the graphs are the bundle's own, run in torch (`sfic.networks.onnx_graph`), so this
works without a second copy of the weights. Needs the `train` extra.

The objective is `distortion + weight * bits`. Distortion is what the bundle itself can tell without
a teacher: multi-scale L1 of the picture that the spatial code makes, and the distance of the
identity embeddings that its own analysis and heads read from it and from the face. Bits are those
of the laws that the real entropy model says (refreshed every few steps), with a logistic density in
place of tables; the weight is what a bit is worth between this rate and the next ones, for this
face. Rounding passes its gradient straight through.

Two rounds: all parts together, of which the styles are kept and chosen; then the spatial codes
alone, for the styles that were chosen. `sfic.codec` keeps the face of effort 1 where the objective
of the refined one, with real bytes, is not lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sfic.bundle import ModelBundle
from sfic.entropy.transformer import SPATIAL
from sfic.errors import MissingExtra
from sfic.generator import preview_output
from sfic.layers import LAYERS

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
# Symbols of some parts -> mean and deviation, in steps, that the entropy model gives each of them.
Laws = Callable[[Mapping[str, IntArray]], Mapping[str, tuple[FloatArray, FloatArray]]]

__all__ = ["STEPS", "Laws", "Refiner"]

STEPS: Final = {2: (8, 16), 3: (32, 64)}  # of each round
LEARNING_RATE: Final = 0.015  # quantiser steps; twice as much lets fine symbols of 0 drift to 1
RATE_SHARE: Final = 0.1  # of what a bit is worth: the greedy choice that follows charges it again
IDENTITY_WEIGHT: Final = 0.3
REFRESH: Final = 8  # steps between two looks at the laws
LEAST_DEVIATION: Final = 0.12  # of a law: below it no gradient would lead away from its mean


@dataclass(frozen=True)
class _Shown:
    """What the styles alone give."""

    features: Tensor
    preview: Tensor


class Refiner:
    """Moves latents so that the decoded picture comes nearer to the face for its bits."""

    def __init__(self, bundle: ModelBundle) -> None:
        """Load the graphs; MissingExtra without torch and onnx."""
        try:
            from sfic.networks.onnx_graph import OnnxGraph
        except ImportError as error:
            raise MissingExtra("efforts 2 and 3 need torch: pip install 'sfic[train]'") from error
        self._graphs = {
            name: OnnxGraph(bundle.path(f"{name}.onnx"))
            for name in (
                "analysis",
                "styles",
                "correction",
                "heads",
                "generator_low",
                "generator_high",
            )
        }
        self._input = int(bundle.meta["input"])
        self._preview = preview_output(bundle.path("generator_high.onnx"))

    def _run(self, graph: str, output: str, **inputs: Tensor) -> Tensor:
        result: Tensor = self._graphs[graph](inputs, [output])[0]
        return result

    def distortion(
        self, crop: FloatArray, symbols: Mapping[str, IntArray], gains: Mapping[str, FloatArray]
    ) -> float:
        """The objective's distortion of the picture that these symbols decode to."""
        import torch

        with torch.no_grad():
            target = torch.from_numpy(crop)
            values = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in symbols.items()}
            latents = _latents(values, gains)
            wanted = self._identity(target)
            return float(self._distortion(latents, self._shown(latents), target, wanted))

    def refine(
        self,
        crop: FloatArray,
        start: Mapping[str, FloatArray],
        gains: Mapping[str, FloatArray],
        laws: Laws,
        weight: float,
        steps: int,
        fixed: Mapping[str, IntArray] | None = None,
    ) -> dict[str, FloatArray]:
        """Better values before rounding, in quantiser steps, for the parts of `start`.

        `crop`: float32 [1, 3, 128, 128] in [-1, 1]. `start`: the one-pass values of the vectors
        [n] and of both spatial codes [C, S, S], or of these alone; `fixed`: symbols of the parts
        that are not in it. `gains`: quantiser steps to the unit, of the same shapes or
        broadcasting to them. `laws`: of all symbols; `weight`: distortion that a bit is worth.
        """
        import torch

        target = torch.from_numpy(crop)
        known = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in (fixed or {}).items()}
        values = {
            name: torch.from_numpy(np.array(value)).requires_grad_(True)
            for name, value in start.items()
        }
        optimiser = torch.optim.Adam(list(values.values()), lr=LEARNING_RATE, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        with torch.no_grad():
            wanted = self._identity(target)
            still = self._shown(_latents(known, gains)) if known else None
        current: Mapping[str, tuple[FloatArray, FloatArray]] = {}
        for step in range(steps):
            rounded = {k: v + (v.round() - v).detach() for k, v in values.items()} | known
            if step % REFRESH == 0:
                current = laws({k: v.detach().numpy().astype(np.int32) for k, v in rounded.items()})
            latents = _latents(rounded, gains)
            shown = still or self._shown(latents)
            loss = self._distortion(latents, shown, target, wanted)
            for name, value in values.items():
                loss = loss + RATE_SHARE * weight * _bits(value, *current[name])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        return {name: value.detach().numpy() for name, value in values.items()}

    def _shown(self, latents: Mapping[str, Tensor]) -> _Shown:
        styles = self._run("styles", "styles_enhanced", **{k: latents[k] for k in LAYERS})
        features = self._run("generator_low", "features", styles=styles)
        preview = self._run("generator_high", self._preview, styles=styles, features=features)
        return _Shown(features, preview)

    def _distortion(
        self, latents: Mapping[str, Tensor], shown: _Shown, target: Tensor, wanted: Tensor
    ) -> Tensor:
        import torch
        import torch.nn.functional as F  # noqa: N812

        inputs = {"features": shown.features, "preview": shown.preview}
        code = torch.cat([latents[part] for part in SPATIAL], dim=1)
        picture = self._run("correction", "picture", code=code, **inputs)
        loss = IDENTITY_WEIGHT * (1.0 - (self._identity(picture) * wanted).sum())
        a, b = picture, target
        for _ in range(4):
            loss = loss + (a - b).abs().mean()
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        return loss

    def _identity(self, picture: Any) -> Tensor:
        """picture: [1, 3, 128, 128] -> the unit embedding [1, D] that the bundle reads from it."""
        import torch.nn.functional as F  # noqa: N812

        size = (self._input, self._input)
        large = F.interpolate(picture, size=size, mode="bilinear", align_corners=False)
        basic = self._run("analysis", "basic", crop=large)
        return self._run("heads", "embedding", basic=basic)


def _latents(values: Mapping[str, Tensor], gains: Mapping[str, FloatArray]) -> dict[str, Tensor]:
    import torch

    return {k: (v / torch.from_numpy(np.array(gains[k])))[None] for k, v in values.items()}


def _bits(value: Tensor, mean: FloatArray, deviation: FloatArray) -> Tensor:
    """Bits of all values under logistic laws, integrated over a step around each."""
    import torch

    scale = torch.from_numpy(np.maximum(deviation, LEAST_DEVIATION)) * (math.sqrt(3) / math.pi)
    distance = (value - torch.from_numpy(mean)).abs()
    upper, lower = torch.sigmoid((0.5 - distance) / scale), torch.sigmoid((-0.5 - distance) / scale)
    return -torch.log2((upper - lower).clamp_min(1e-6)).sum()
