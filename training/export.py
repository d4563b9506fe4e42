"""Export a trained codec as the model bundle that the services run.

    python -m training.export --checkpoint ... --heads ... --out models/

Writes analysis, spatial_analysis, styles, correction and heads as ONNX and the manifest. Entropy
model and tables (`training.train_entropy`) and the generator (`training.generator`) have to be in
the folder already. Weights are stored in half precision and computed in single: no symbol is ever
computed twice from them, so their rounding costs fidelity only (measured in the card).
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from sfic.analysis import HEADS
from sfic.bundle import ModelBundle
from sfic.networks.codec import LAYERS, FaceCodec
from sfic.networks.heads import TaskHeads
from training.codec_checkpoint import identity_network, load_codec
from training.teachers import Faceres

OPSET = 17
STYLES = ("basic", "enhanced")  # where the graph of the styles ends: after one layer, after all
IDENTITY_INPUT = 256  # side of a crop that is large enough for the identity network


class AnalysisGraph(nn.Module):
    """crop [N, 3, S, S] -> latents of the three style layers; `fold`: S to the trunk's input."""

    def __init__(self, codec: FaceCodec, identity: Faceres | None, fold: int) -> None:
        super().__init__()
        self.codec, self.identity, self.fold = codec, identity, fold

    def forward(self, crop: Tensor) -> tuple[Tensor, ...]:
        embedding = None if self.identity is None else self.identity.identity(crop)
        z = self.codec.analyse(F.avg_pool2d(crop, self.fold), embedding)
        return tuple(z[name] for name in LAYERS)


class StylesGraph(nn.Module):
    """Decoded latents -> styles of the basic layer alone, and of all."""

    def __init__(self, codec: FaceCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, basic: Tensor, middle: Tensor, enhanced: Tensor) -> tuple[Tensor, ...]:
        latents = {"basic": basic, "middle": middle, "enhanced": enhanced}
        coefficients = self.codec.coefficients(latents)
        return tuple(self.codec.whitening.to_styles(coefficients[name]) for name in STYLES)


class SpatialGraph(nn.Module):
    """Crop at 128 px, features and preview of the styles, quantiser's gain -> spatial latents."""

    def __init__(self, codec: FaceCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, crop: Tensor, features: Tensor, preview: Tensor, gain: Tensor) -> Tensor:
        return self.codec.spatial_latents(crop, features, preview.clamp(-1.2, 1.2), gain)


class CorrectionGraph(nn.Module):
    """Spatial latents, and features and preview of the styles -> correction, picture at 128 px."""

    def __init__(self, codec: FaceCodec) -> None:
        super().__init__()
        self.net = codec.spatial_synthesis

    def forward(self, code: Tensor, features: Tensor, preview: Tensor) -> tuple[Tensor, ...]:
        correction, picture = self.net(code, features, preview.clamp(-1.2, 1.2))
        return correction, picture


def halve_weights(path: Path) -> None:
    """Store float32 weights of an ONNX file as float16, cast back when the session loads."""
    model = onnx.load(str(path))
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < 4096:
            continue
        values = numpy_helper.to_array(tensor).astype(np.float16)
        name = tensor.name
        small = numpy_helper.from_array(values, name + ".half")
        graph.initializer.remove(tensor)
        graph.initializer.append(small)
        casts.append(
            helper.make_node("Cast", [name + ".half"], [name], to=onnx.TensorProto.FLOAT)
        )
    for cast in reversed(casts):
        graph.node.insert(0, cast)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def export(
    module: nn.Module, inputs: dict[str, Tensor], outputs: tuple[str, ...], path: Path
) -> None:
    """Write one graph with a free batch size."""
    module.eval()
    axes = {name: {0: "N"} for name in (*inputs, *outputs)}
    with warnings.catch_warnings():
        # Shape checks become constants, as they should; the new exporter writes larger graphs.
        for kind in (torch.jit.TracerWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        warnings.filterwarnings("ignore", "Constant folding")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    halve_weights(path)


def export_analysis(codec: FaceCodec, identity: Faceres | None, size: int, out: Path) -> int:
    """Write the encoder's first graph to the folder `out`; returns the side of its crops.

    Arguments as in `export_codec`.
    """
    if (identity is None) != (codec.shape.identity == 0):
        raise ValueError("a codec has both symbols of an identity network and it, or neither")
    fold = 1 if identity is None else IDENTITY_INPUT // size
    crop = torch.zeros(2, 3, fold * size, fold * size)
    graph = AnalysisGraph(codec, identity, fold)
    export(graph, {"crop": crop}, LAYERS, out / "analysis.onnx")
    return fold * size


def export_codec(
    codec: FaceCodec, heads: TaskHeads, size: int, identity: Faceres | None, out: Path
) -> dict[str, Any]:
    """Write the five graphs of a codec; `size`: side of what the trunk sees.

    `identity`: the identity network, for a codec with one. Returns the settings that go into the
    manifest.
    """
    s = codec.shape
    seen = export_analysis(codec, identity, size, out)
    latents = {n: torch.zeros(2, getattr(s, n)) for n in LAYERS}
    names = tuple(f"styles_{n}" for n in STYLES)
    export(StylesGraph(codec), latents, names, out / "styles.onnx")
    preview = torch.zeros(2, 3, s.preview, s.preview)
    picture = torch.zeros(2, 3, s.picture, s.picture)
    features = torch.zeros(2, s.feature_channels, s.feature_size, s.feature_size)
    gain = torch.ones(2, s.spatial_channels, 1, 1)
    export(
        SpatialGraph(codec),
        {"crop": picture, "features": features, "preview": preview, "gain": gain},
        ("code",),
        out / "spatial_analysis.onnx",
    )
    code = torch.zeros(2, s.spatial_channels, s.spatial_size, s.spatial_size)
    export(
        CorrectionGraph(codec),
        {"code": code, "features": features, "preview": preview},
        ("correction", "picture"),
        out / "correction.onnx",
    )
    export(heads, {"basic": latents["basic"]}, HEADS, out / "heads.onnx")
    return {
        "input": seen,
        "picture": s.picture,
        "sizes": list(s.sizes),
        "styles": s.styles,
        "style_dim": s.style_dim,
        "embedding": heads.sizes["embedding"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--input", type=int, default=128)
    args = parser.parse_args()
    codec, heads = load_codec(args.checkpoint), TaskHeads.load(args.heads)
    identity = identity_network() if codec.shape.identity else None
    meta = export_codec(codec, heads, args.input, identity, args.out)
    print(ModelBundle.write(args.out, meta))


if __name__ == "__main__":
    main()
