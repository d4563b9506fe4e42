"""Efforts 2 and 3: gradient steps on a face's latents, through the networks that are served.

What belongs here: the objective and the steps. Rounding, choice of symbols and packets stay in
`sfic.codec`; the graphs are the bundle's own, run in torch (`sfic.networks.onnx_graph`), so this
works without a second copy of the weights. Needs the `train` extra.

Distortion is what the bundle itself can tell without a teacher: multi-scale L1 of the picture that
the spatial code makes, and the distance of the identity embeddings that its own analysis and heads
read from it and from the face. Rounding passes its gradient straight through; a step away from the
one-pass latents costs, so that the bytes stay about the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sfic.bundle import ModelBundle
from sfic.errors import MissingExtra
from sfic.generator import preview_output
from sfic.layers import LAYERS

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = npt.NDArray[np.float32]

__all__ = ["STEPS", "Refiner"]

STEPS: Final = {2: 24, 3: 96}
LEARNING_RATE: Final = 0.08  # quantiser steps
IDENTITY_WEIGHT: Final = 0.1
STAY_WEIGHT: Final = 1e-4


class Refiner:
    """Moves latents so that the decoded preview comes nearer to the face."""

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

    def refine(
        self,
        crop: FloatArray,
        ideal: Mapping[str, FloatArray],
        gains: Mapping[str, FloatArray],
        effort: int,
    ) -> dict[str, FloatArray]:
        """Better values before rounding, in quantiser steps, for every part.

        `crop`: float32 [1, 3, 128, 128] in [-1, 1]. `ideal`: the one-pass values of basic, middle,
        enhanced [n] and spatial [C, S, S]; `gains`: quantiser steps to the unit, of the same shape
        or broadcasting to it.
        """
        import torch
        import torch.nn.functional as F  # noqa: N812

        target = torch.from_numpy(crop)
        start = {name: torch.from_numpy(np.array(value)) for name, value in ideal.items()}
        values = {name: value.clone().requires_grad_(True) for name, value in start.items()}
        scale = {name: torch.from_numpy(np.array(gains[name])) for name in start}
        optimiser = torch.optim.Adam(list(values.values()), lr=LEARNING_RATE, betas=(0.9, 0.95))
        steps = STEPS[effort]
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        with torch.no_grad():
            wanted = self._identity(target)
        for _ in range(steps):
            rounded = {k: v + (v.round() - v).detach() for k, v in values.items()}
            latents = {k: (v / scale[k])[None] for k, v in rounded.items()}
            styles = self._run("styles", "styles_enhanced", **{k: latents[k] for k in LAYERS})
            features = self._run("generator_low", "features", styles=styles)
            preview = self._run("generator_high", self._preview, styles=styles, features=features)
            inputs = {"code": latents["spatial"], "features": features, "preview": preview}
            picture = self._run("correction", "picture", **inputs)
            loss = 1.0 - (self._identity(picture) * wanted).sum()
            loss = IDENTITY_WEIGHT * loss
            a, b = picture, target
            for _ in range(4):
                loss = loss + (a - b).abs().mean()
                a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
            for name, value in values.items():
                loss = loss + STAY_WEIGHT * (value - start[name]).square().sum()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        return {name: value.detach().numpy() for name, value in values.items()}

    def _identity(self, picture: Any) -> Tensor:
        """picture: [1, 3, 128, 128] -> the unit embedding [1, D] that the bundle reads from it."""
        import torch.nn.functional as F  # noqa: N812

        size = (self._input, self._input)
        large = F.interpolate(picture, size=size, mode="bilinear", align_corners=False)
        basic = self._run("analysis", "basic", crop=large)
        return self._run("heads", "embedding", basic=basic)
