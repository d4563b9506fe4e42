"""Start a codec from the weights of a model bundle, for a run whose checkpoint is not at hand.

What belongs here: which tensor of the exported graphs is which parameter. Batch norms are folded in
a bundle; they go into the convolutions of the new codec, whose norms become the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from sfic.entropy.model import SPATIAL
from sfic.layers import LAYERS
from sfic.networks.codec import KNOTS, FaceCodec, Gain

__all__ = ["start_from_bundle"]

# Where the names in a graph are among those of the codec.
GRAPHS: Final = {
    "analysis.onnx": ("codec.", ""),
    "styles.onnx": ("codec.", ""),
    "spatial_analysis.onnx": ("codec.", ""),
    "correction.onnx": ("net.", "spatial_synthesis."),
}
GAINS: Final[dict[str, tuple[str, ...]]] = {
    **{name: (name,) for name in LAYERS},
    "spatial": SPATIAL,
}  # of the codec: those of the file, side by side


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
    """Take over the parts named, such as "trunk" or "from_basic", and the gains of "gains".

    Sizes may differ: leading rows and columns are taken over. ValueError when the trunk or the
    spatial analysis of the bundle is built otherwise.
    """
    own = codec.state_dict()
    for graph, (prefix, place) in GRAPHS.items():
        folded: list[Tensor] = []  # convolutions with a batch norm, which lost their names
        for name, value in _tensors(folder / graph).items():
            if name.startswith("onnx::Conv"):
                folded.append(value)
            # The one bias that is reshaped in its graph, and so loses its name.
            short = "look.bias" if name.startswith("onnx::Add") else name.removeprefix(prefix)
            key = place + short
            if key.split(".")[0] in parts and key in own:
                _copy(own[key], value.flatten() if short == "look.bias" else value)
        if graph == "analysis.onnx" and "trunk" in parts:
            layers = [m for m in codec.trunk.backbone.modules() if hasattr(m, "norm")]
            # The identity network's, which comes first, are not ours.
            _fill([(m.conv, m.norm) for m in layers], folded[-2 * len(layers) :])
        if graph == "spatial_analysis.onnx":
            *_, last, norm = codec.spatial_analysis.net
            rest = codec.spatial_refinement
            ends = {
                "spatial_analysis": (last, norm),
                "spatial_refinement": (rest.linear, rest.norm),
            }
            _fill([ends[name] if name in parts else None for name in ends], folded)
    if "gains" in parts:
        with np.load(folder / "entropy.npz") as file:
            for name, parts_of in GAINS.items():
                both = np.concatenate([file[f"gain.{part}"] for part in parts_of], axis=1)
                gain = torch.from_numpy(both).log()  # [9, n]
                kept = codec.gains[name]
                assert isinstance(kept, Gain)
                _copy(kept.knots, gain[:: (len(gain) - 1) // (KNOTS - 1)])


def _fill(layers: Sequence[tuple[nn.Module, nn.Module] | None], values: Sequence[Tensor]) -> None:
    """values: weight and bias of each convolution, in order of use; None: one to leave alone."""
    if len(values) != 2 * len(layers):
        raise ValueError(f"{len(values) // 2} convolutions in the bundle, {len(layers)} here")
    for layer, weight, bias in zip(layers, values[::2], values[1::2], strict=True):
        if layer is None:
            continue
        conv, norm = layer
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        if conv.weight.shape != weight.shape:
            raise ValueError(
                f"a convolution of the bundle is {tuple(weight.shape)}, here it is "
                f"{tuple(conv.weight.shape)}"
            )
        assert norm.running_mean is not None and norm.running_var is not None
        conv.weight.copy_(weight)
        norm.running_var.fill_(1.0 - norm.eps)
        shift = bias
        if conv.bias is not None:
            conv.bias.zero_()
        if norm.affine:
            norm.running_mean.zero_()
            norm.weight.fill_(1.0)
            norm.bias.copy_(shift)
        else:
            norm.running_mean.copy_(-shift)
