"""The networks of face-api (MIT, Vincent Mühler and Vladimir Mandic) in torch.

Belongs here: the four architectures and the reading of their weights. Not here: which are teachers
(`training.teachers`: expression, age and gender) and which are judges (`training.convert_judges`:
68 landmarks, dlib's recogniser). The weights are stored as uint8, dequantised on reading.

Every `forward` takes cropped faces, float32 [N, 3, S, S], RGB in 0..255; S is 112, for the
recogniser 150. Source: https://github.com/vladmandic/face-api/tree/main/src
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.tfjs import read_weights, same_padding

_MEAN = (122.782, 117.001, 104.298)
Weights = Mapping[str, NDArray[Any]]
_Net = TypeVar("_Net", bound=nn.Module)


def read_faceapi(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    """Weights of `name` (such as `face_expression_model`) from the package's model folder."""
    manifest = json.loads((folder / f"{name}-weights_manifest.json").read_text())
    return read_weights(manifest, folder)


class _Conv(nn.Module):
    """Convolution with bias and TensorFlow SAME padding; `valid` leaves padding out."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, valid: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.valid = stride, valid
        self.weight = nn.Parameter(torch.empty(c_out, c_in, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(c_out))

    def forward(self, x: Tensor) -> Tensor:
        if not self.valid:
            x = same_padding(x, self.weight.shape[2], self.stride)
        return F.conv2d(x, self.weight, self.bias, self.stride)


class _Separable(nn.Module):
    """Depthwise 3x3, pointwise 1x1, bias; SAME padding."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Parameter(torch.empty(c_in, 1, 3, 3))
        self.pointwise = nn.Parameter(torch.empty(c_out, c_in, 1, 1))
        self.bias = nn.Parameter(torch.empty(c_out))

    def forward(self, x: Tensor) -> Tensor:
        x = same_padding(x, 3, self.stride)
        x = F.conv2d(x, self.depthwise, None, self.stride, groups=x.shape[1])
        return F.conv2d(x, self.pointwise, self.bias)


class _DenseBlock(nn.Module):
    """Four convolutions, each fed with the sum of all before it."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        first: nn.Module = _Conv(3, c_out, stride=2) if c_in == 3 else _Separable(c_in, c_out, 2)
        self.conv = nn.ModuleList([first, *(_Separable(c_out, c_out) for _ in range(3))])

    def forward(self, x: Tensor) -> Tensor:
        total = F.relu(self.conv[0](x))
        x = total
        for conv in list(self.conv)[1:]:
            total = total + conv(x)
            x = F.relu(total)
        return x


class DenseFaceNet(nn.Module):
    """Seven expression logits or 136 landmark coordinates: the two share an architecture.

    Expressions: neutral, happy, sad, angry, fearful, disgusted, surprised (before the softmax).
    Landmarks: x, y of 68 points in turn, as fractions of the crop.
    """

    mean: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        self.dense = nn.ModuleList(
            _DenseBlock(a, b) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.fc = nn.Linear(256, outputs)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, face: Tensor) -> Tensor:
        x = (face - self.mean) / 255.0
        for block in self.dense:
            x = block(x)
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class _Reduction(nn.Module):
    def __init__(self, c_in: int, c_out: int, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.separable_conv0 = _Separable(c_in, c_out)
        self.separable_conv1 = _Separable(c_out, c_out)
        self.expansion_conv = _Conv(c_in, c_out, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.separable_conv0(x if self.first else F.relu(x))
        y = self.separable_conv1(F.relu(y))
        # SAME padding of a maximum: what is outside must never win.
        y = F.max_pool2d(F.pad(y, (0, 1, 0, 1), value=-1e30), 3, 2)
        out: Tensor = y + self.expansion_conv(x)
        return out


class _Main(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.separable_conv0 = _Separable(width, width)
        self.separable_conv1 = _Separable(width, width)
        self.separable_conv2 = _Separable(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.separable_conv0(F.relu(x))
        y = self.separable_conv1(F.relu(y))
        out: Tensor = self.separable_conv2(F.relu(y)) + x
        return out


class AgeGenderNet(nn.Module):
    """Age in years [N] and the probability of male [N], from a small Xception."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.entry_flow = nn.ModuleDict(
            {
                "conv_in": _Conv(3, 32, stride=2),
                "reduction_block_0": _Reduction(32, 64, first=True),
                "reduction_block_1": _Reduction(64, 128),
            }
        )
        self.middle_flow = nn.ModuleDict({f"main_block_{i}": _Main(128) for i in range(2)})
        self.exit_flow = nn.ModuleDict(
            {"reduction_block": _Reduction(128, 256), "separable_conv": _Separable(256, 512)}
        )
        self.fc = nn.ModuleDict({"age": nn.Linear(512, 1), "gender": nn.Linear(512, 2)})
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, face: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.entry_flow["conv_in"]((face - self.mean) / 255.0))
        x = self.entry_flow["reduction_block_1"](self.entry_flow["reduction_block_0"](x))
        for block in self.middle_flow.values():
            x = block(x)
        x = F.relu(self.exit_flow["separable_conv"](self.exit_flow["reduction_block"](x)))
        x = x.mean((2, 3))  # [N, 512]
        return self.fc["age"](x)[:, 0], torch.softmax(self.fc["gender"](x), 1)[:, 0]


class _Residual(nn.Module):
    """dlib's residual block; a wider one halves the map and pads skipped channels with zeros."""

    def __init__(self, c_in: int, c_out: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv1 = _Conv(c_in, c_out, stride=2 if down else 1, valid=down)
        self.conv2 = _Conv(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        if self.down:
            x = F.avg_pool2d(x, 2)
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
        return F.relu(x + y)


class DlibRecogniser(nn.Module):
    """dlib's face recogniser (King 2017), raw 128-vector: people differ by distance, .6 or more."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv32_down = _Conv(3, 32, 7, 2, valid=True)
        blocks: dict[str, _Residual] = {f"conv32_{i}": _Residual(32, 32, False) for i in (1, 2, 3)}
        for c_in, width, more in ((32, 64, 3), (64, 128, 2), (128, 256, 2)):
            blocks[f"conv{width}_down"] = _Residual(c_in, width, True)
            for i in range(1, more + 1):
                blocks[f"conv{width}_{i}"] = _Residual(width, width, False)
        blocks["conv256_down_out"] = _Residual(256, 256, True)
        self.blocks = nn.ModuleDict(blocks)
        self.fc = nn.Linear(256, 128, bias=False)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, face: Tensor) -> Tensor:
        x = F.relu(self.conv32_down((face - self.mean) / 255.0))
        x = F.max_pool2d(x, 3, 2)
        for block in self.blocks.values():
            x = block(x)
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def _kernel(w: NDArray[Any], depthwise: bool = False) -> Tensor:
    order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(w.transpose(order)))


def load_faceapi(net: _Net, weights: Weights) -> _Net:
    """Fill one of the networks above with its weights by name; frozen, in evaluation mode."""
    state: dict[str, Tensor] = {}
    for name, w in weights.items():
        where, leaf = name.rsplit("/", 1)
        key = where.replace("/", ".")
        for i in range(4):
            key = key.replace(f"dense{i}.", f"dense.{i}.").replace(f".conv{i}", f".conv.{i}")
        if leaf in ("filters", "depthwise_filter", "pointwise_filter"):
            short = leaf.replace("filters", "weight").replace("_filter", "")
            state[f"{key}.{short}"] = _kernel(w, leaf == "depthwise_filter")
        elif w.ndim == 2:
            state[f"{key}.weight"] = torch.from_numpy(w.T.copy())
        else:
            state[f"{key}.bias"] = torch.from_numpy(w)
    net.load_state_dict(state)
    return net.requires_grad_(False).eval()


def load_dlib(weights: Weights) -> DlibRecogniser:
    """The recogniser, each convolution merged with the scale layer that follows it."""
    state = {"fc.weight": torch.from_numpy(weights["fc"].T.copy())}
    for name in (n for n in weights if n.endswith("/conv/filters")):
        layer = name.removesuffix("/conv/filters")
        scale = torch.from_numpy(weights[f"{layer}/scale/weights"])
        key = layer.replace("/", ".")
        key = key if key == "conv32_down" else f"blocks.{key}"
        bias = torch.from_numpy(weights[f"{layer}/conv/bias"]) * scale
        state[f"{key}.weight"] = _kernel(weights[name]) * scale.view(-1, 1, 1, 1)
        state[f"{key}.bias"] = bias + torch.from_numpy(weights[f"{layer}/scale/biases"])
    net = DlibRecogniser()
    net.load_state_dict(state)
    return net.requires_grad_(False).eval()
