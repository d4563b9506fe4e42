"""Start a codec from the weights of a model bundle, for a run whose checkpoint is not at hand.

What belongs here: which tensor of the exported graphs is which parameter. Batch norms are folded in
a bundle; they go into the convolutions of the new codec, whose norms become the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from sfic.networks.codec import FaceCodec, Gain

__all__ = ["start_from_bundle"]

GRAPHS = {"analysis.onnx": "codec.", "styles.onnx": "codec."}


def _tensors(path: Path) -> dict[str, Tensor]:
    """Weights of a graph by name, in the order in which its nodes use them."""
    graph = onnx.load(str(path)).graph
    values = {t.name.removesuffix(".half"): numpy_helper.to_array(t) for t in graph.initializer}
    used = [name for node in graph.node if node.op_type != "Cast" for name in node.input]
    return {
        name: torch.from_numpy(np.array(values[name], np.float32))
        for name in dict.fromkeys(used)
        if name in values
    }


@torch.no_grad()
def _copy(parameter: Tensor, value: Tensor) -> None:
    """Copy what both have; inputs (second axis) that are new count for nothing at first."""
    if parameter.ndim > 1 and parameter.shape[1] > value.shape[1]:
        parameter[: len(value)] = 0.0
    where = tuple(slice(0, min(a, b)) for a, b in zip(parameter.shape, value.shape, strict=True))
    parameter[where] = value[where]


@torch.no_grad()
def start_from_bundle(codec: FaceCodec, folder: Path, parts: Sequence[str]) -> None:
    """Take over the parts named, such as "trunk" or "from_basic", and the basic layer's gains.

    Sizes may differ: leading rows and columns are taken over. ValueError when the trunk's
    convolutions are not those of the bundle.
    """
    own = dict(codec.named_parameters())
    convolutions: list[Tensor] = []
    for graph, prefix in GRAPHS.items():
        for name, value in _tensors(folder / graph).items():
            if name.startswith("onnx::Conv"):
                convolutions.append(value)
            key = name.removeprefix(prefix)
            if key.split(".")[0] in parts and key in own:
                _copy(own[key], value)
    if "trunk" in parts:
        _fill_backbone(codec.trunk.backbone, convolutions)
    with np.load(folder / "entropy.npz") as file:
        gain = torch.from_numpy(file["gain.basic"]).log()  # [9, n]
    kept = codec.gains["basic"]
    assert isinstance(kept, Gain)
    _copy(kept.low, gain[0])
    _copy(kept.high, gain[-1])


def _fill_backbone(backbone: nn.Module, values: list[Tensor]) -> None:
    """values: weight and bias of each convolution, in order of use."""
    layers = [m for m in backbone.modules() if hasattr(m, "conv") and hasattr(m, "norm")]
    if len(values) != 2 * len(layers):
        raise ValueError(f"{len(values) // 2} convolutions for a trunk of {len(layers)}")
    for layer, weight, bias in zip(layers, values[::2], values[1::2], strict=True):
        norm = layer.norm
        assert isinstance(norm, nn.BatchNorm2d)
        layer.conv.weight.copy_(weight)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)
        norm.weight.fill_(1.0)
        norm.bias.copy_(bias)
