"""The entropy transformer as one graph, in torch and as ONNX, to hold against the product's numpy.

What belongs here: all tables of a face from all its symbols at once (a decoder cannot do that, it
has them step by step). Where the three say the same tables, they code the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sfic.entropy.model import MEAN_LIMIT, SPATIAL, VECTORS, EntropyModel, LayerSymbols
from training.entropy_network import EntropyTransformer

OPSET = 17
PARTS = (*VECTORS, *SPATIAL)


class Laws(nn.Module):
    """Symbols and rate to clipped mean and scale index of every symbol, in the order of coding."""

    def __init__(self, network: EntropyTransformer, scale_count: int) -> None:
        super().__init__()
        self.network, self.top = network, scale_count - 1

    def forward(
        self,
        basic: Tensor,
        middle: Tensor,
        enhanced: Tensor,
        coarse: Tensor,
        fine: Tensor,
        rate: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Symbols [n, ...] (float-valued integers), rate [n] 0..8 -> mean, scale [n, symbols]."""
        net = self.network
        parts = dict(zip(PARTS, (basic, middle, enhanced, coarse, fine), strict=True))
        *vectors, tokens = net.vector_tables(parts, rate)
        laws = [tuple(vectors)]
        for part, _, *law in net.spatial_tables(parts, tokens, rate):
            groups = net.groups[part]
            for group in np.unique(groups):
                channels = torch.from_numpy(np.flatnonzero(groups == group))
                laws.append(tuple(x[:, :, channels].flatten(1) for x in law))
        mean, scale = (torch.cat(column, dim=1) for column in zip(*laws, strict=True))
        return mean.clamp(-MEAN_LIMIT, MEAN_LIMIT), scale.clamp(0, self.top)


def export_laws(laws: Laws, path: Path) -> None:
    """Write the graph as ONNX with a free batch size."""
    sizes = laws.network.sizes
    inputs = [torch.zeros(2, *sizes[p]) for p in PARTS] + [torch.zeros(2, dtype=torch.int64)]
    names = [*PARTS, "rate"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of itself, and of shapes that are fixed
        torch.onnx.export(
            laws.eval(), tuple(inputs), str(path), input_names=names,
            output_names=["mean", "scale"],
            dynamic_axes={name: {0: "N"} for name in (*names, "mean", "scale")},
            opset_version=OPSET, dynamo=False,
        )


def tables_of(
    model: EntropyModel, symbols: LayerSymbols, rate: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Offset and table index of every symbol by the product's own code, in the order of coding."""
    vectors, cells = [], []
    for layer in VECTORS:
        for step in model._steps(layer, rate, symbols.parts):
            (cells if step.part in SPATIAL else vectors).append((step.offset, step.table))
    offset, table = zip(*(vectors + cells), strict=True)
    return np.concatenate(offset), np.concatenate(table)


Run = Callable[[int, LayerSymbols], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def law_runs(laws: Laws, onnx_path: Path) -> dict[str, Run]:
    """The graph in torch, and the exported one in ONNX Runtime with and without optimisation.

    Each maps (rate 1..9, symbols) to mean and scale index of all symbols, int64 [symbols].
    """
    import onnxruntime as ort

    def inputs(rate: int, symbols: LayerSymbols) -> list[npt.NDArray[np.generic]]:
        parts = [symbols.parts[p].astype(np.float32)[None] for p in PARTS]
        return [*parts, np.array([rate - 1])]

    def whole(values: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        integers = values[0].astype(np.int64)
        if not np.array_equal(integers, values[0]):
            raise ValueError("the graph gave a number that is not whole")
        return integers

    def in_torch(
        rate: int, symbols: LayerSymbols
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        with torch.no_grad():
            mean, scale = laws(*(torch.from_numpy(x) for x in inputs(rate, symbols)))
        return whole(mean.numpy()), whole(scale.numpy())

    def in_onnx(level: ort.GraphOptimizationLevel) -> Run:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def run(
            rate: int, symbols: LayerSymbols
        ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
            feed = dict(zip(names, inputs(rate, symbols), strict=True))
            mean, scale = session.run(["mean", "scale"], feed)
            return whole(mean), whole(scale)

        return run

    levels = ort.GraphOptimizationLevel
    return {
        "torch": in_torch,
        "onnxruntime, optimised": in_onnx(levels.ORT_ENABLE_ALL),
        "onnxruntime, as exported": in_onnx(levels.ORT_DISABLE_ALL),
    }
