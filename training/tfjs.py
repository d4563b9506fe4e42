"""Read networks stored in TensorFlow.js formats and run them in torch.

Belongs here: the weight-file reader (float16, float32, uint8-quantised), the graph-model reader,
and `GraphNetwork`, which executes a graph model node by node. Not here: what a particular network
means (`training.teachers`, `training.convert_judges`).

Formats: https://github.com/tensorflow/tfjs/tree/master/tfjs-converter (weights manifest,
graph-model JSON).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

_DTYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "bool": "u1"}


class TfjsError(ValueError):
    """The file is not a network that this reader understands; the message says which part."""


def read_weights(manifest: Sequence[dict[str, Any]], folder: Path) -> dict[str, NDArray[Any]]:
    """Read every weight of a tfjs manifest.

    `manifest` is the list of weight groups; `folder` holds the binary files that it names (files
    without an extension match `NAME.bin` too). Returns float32 (or int32) arrays by name; uint8
    weights are dequantised as `min + scale * q`. Raises TfjsError when bytes are missing or left
    over.
    """
    weights: dict[str, NDArray[Any]] = {}
    for group in manifest:
        blob = b"".join((folder / p).read_bytes() for p in group["paths"])
        at = 0
        for spec in group["weights"]:
            count = int(np.prod(spec["shape"], dtype=np.int64))
            quant = spec.get("quantization")
            stored = np.dtype(_DTYPES[quant["dtype"] if quant else spec["dtype"]])
            if at + count * stored.itemsize > len(blob):
                raise TfjsError(f"{folder}: weight file ends inside {spec['name']}")
            array = np.frombuffer(blob, stored, count, at).reshape(spec["shape"])
            at += count * stored.itemsize
            if quant:
                array = array.astype(np.float32)
                if "scale" in quant:
                    array = array * np.float32(quant["scale"]) + np.float32(quant["min"])
            weights[spec["name"]] = array.copy()
        if at != len(blob):
            raise TfjsError(f"{folder}: {len(blob) - at} bytes left over in {group['paths']}")
    return weights


@dataclass(frozen=True)
class Node:
    """One operation of a graph model; `inputs` are node names."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: dict[str, Any]


@dataclass(frozen=True)
class GraphModel:
    """A tfjs graph model: operations in execution order, constants by name, output names."""

    nodes: tuple[Node, ...]
    constants: dict[str, NDArray[Any]]
    outputs: tuple[str, ...]


def _attribute(value: dict[str, Any]) -> Any:
    if "s" in value:
        return base64.b64decode(value["s"]).decode()
    if "list" in value:
        items = value["list"]
        if "s" in items:
            return [base64.b64decode(s).decode() for s in items["s"]]
        return [int(i) for i in items.get("i", [])]
    if "b" in value:
        return bool(value["b"])
    return int(value["i"]) if "i" in value else value


def read_graph_model(path: Path) -> GraphModel:
    """Read a tfjs graph model (`NAME.json` beside its weight files), nodes sorted so that
    inputs come first.
    """
    data = json.loads(path.read_text())
    if "modelTopology" not in data or "node" not in data["modelTopology"]:
        raise TfjsError(f"{path}: no graph model")
    constants = read_weights(data["weightsManifest"], path.parent)
    waiting = {
        n["name"]: Node(
            n["name"],
            n["op"],
            tuple(i.split(":")[0] for i in n.get("input", []) if not i.startswith("^")),
            {k: _attribute(v) for k, v in n.get("attr", {}).items()},
        )
        for n in data["modelTopology"]["node"]
        if n["op"] != "Const"
    }
    done: dict[str, Node] = {}

    def visit(name: str) -> None:
        if name in done or name in constants:
            return
        if name not in waiting:
            raise TfjsError(f"{path}: node {name} is used but not defined")
        for source in waiting[name].inputs:
            visit(source)
        done[name] = waiting[name]

    signature = data.get("signature") or data.get("userDefinedMetadata", {}).get("signature", {})
    outputs = tuple(o["name"].split(":")[0] for o in signature.get("outputs", {}).values())
    for name in outputs or tuple(waiting):
        visit(name)
    return GraphModel(tuple(done.values()), constants, outputs)


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad [N, C, H, W] as TensorFlow's SAME does: the odd pixel goes right and bottom."""
    pads: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


class GraphNetwork(nn.Module):
    """A tfjs graph model as a differentiable torch module, executed node by node in NCHW.

    Input [N, C, H, W] float32 in whatever range the graph expects; the result is a dict of its
    outputs by name (rank 4 outputs are NCHW). It favours fidelity over speed: it is what
    hand-written modules are checked against, and what small networks are exported from. Raises
    TfjsError on an operation it lacks.
    """

    def __init__(self, model: GraphModel) -> None:
        super().__init__()
        self.nodes = model.nodes
        self.outputs = model.outputs
        self._keys: dict[str, str] = {}
        self._static: dict[str, NDArray[Any]] = {}
        kernels = {n.inputs[1] for n in model.nodes if n.op == "Conv2D"}
        depthwise = {n.inputs[1] for n in model.nodes if n.op == "DepthwiseConv2dNative"}
        for i, (name, array) in enumerate(model.constants.items()):
            if array.dtype.kind == "i":
                self._static[name] = array
                continue
            if name in kernels:
                array = array.transpose(3, 2, 0, 1)
            elif name in depthwise:  # [H, W, C, M] -> [C * M, 1, H, W]
                h, w, c, m = array.shape
                array = array.reshape(h, w, c * m).transpose(2, 0, 1)[:, None]
            self._keys[name] = f"c{i}"
            self.register_buffer(f"c{i}", torch.from_numpy(np.ascontiguousarray(array, np.float32)))
        self._ops: dict[str, Callable[[Node, list[Any]], Tensor]] = {
            "Conv2D": self._conv,
            "DepthwiseConv2dNative": self._conv,
            "Add": lambda n, v: torch.add(*_align(v)),
            "AddV2": lambda n, v: torch.add(*_align(v)),
            "Sub": lambda n, v: torch.sub(*_align(v)),
            "Mul": lambda n, v: torch.mul(*_align(v)),
            "Minimum": lambda n, v: torch.minimum(*_align(v)),
            "Maximum": lambda n, v: torch.maximum(*_align(v)),
            "Relu": lambda n, v: F.relu(v[0]),
            "Sigmoid": lambda n, v: torch.sigmoid(v[0]),
            "Softmax": lambda n, v: torch.softmax(v[0], -1),
            "Pad": self._pad,
            "Mean": self._mean,
            "Reshape": self._reshape,
            "MatMul": self._matmul,
            "_FusedMatMul": self._matmul,
        }
        missing = {n.op for n in model.nodes} - set(self._ops) - {"Placeholder"}
        if missing:
            raise TfjsError(f"operations not implemented: {sorted(missing)}")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        values: dict[str, Any] = dict(self._static)
        values.update({name: getattr(self, key) for name, key in self._keys.items()})
        for node in self.nodes:
            if node.op == "Placeholder":
                values[node.name] = x
            else:
                values[node.name] = self._ops[node.op](node, [values[i] for i in node.inputs])
        return {name: values[name] for name in self.outputs}

    @staticmethod
    def _conv(node: Node, v: list[Any]) -> Tensor:
        x, kernel = v
        stride = node.attrs["strides"][1]
        if node.attrs["padding"] == "SAME":
            x = same_padding(x, kernel.shape[-1], stride)
        groups = x.shape[1] if node.op == "DepthwiseConv2dNative" else 1
        return F.conv2d(x, kernel, stride=stride, groups=groups)

    @staticmethod
    def _pad(node: Node, v: list[Any]) -> Tensor:
        (top, bottom), (left, right) = v[1].tolist()[1:3]
        return F.pad(v[0], (left, right, top, bottom))

    @staticmethod
    def _mean(node: Node, v: list[Any]) -> Tensor:
        axes = tuple({0: 0, 1: 2, 2: 3, 3: 1}[int(a)] for a in np.atleast_1d(v[1]))
        return torch.mean(v[0], axes, keepdim=node.attrs.get("keep_dims", False))

    @staticmethod
    def _reshape(node: Node, v: list[Any]) -> Tensor:
        x = v[0].permute(0, 2, 3, 1) if v[0].ndim == 4 else v[0]  # back to NHWC order
        shape = [int(s) for s in v[1]]
        if len(shape) != 2:
            raise TfjsError(f"{node.name}: only a reshape to rank 2 is implemented")
        y: Tensor = x.reshape(shape)
        return y

    @staticmethod
    def _matmul(node: Node, v: list[Any]) -> Tensor:
        y: Tensor = v[0] @ v[1]
        for op in node.attrs.get("fused_ops", []):
            if op == "BiasAdd":
                y = y + v[2]
            elif op == "Relu":
                y = F.relu(y)
            else:
                raise TfjsError(f"{node.name}: fused {op} is not implemented")
        return y


def _align(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Give per-channel constants the shape [C, 1, 1] (or NHWC constants NCHW) against a rank-4
    operand.
    """
    a, b = values
    if a.ndim == 4 and b.ndim < 4:
        b = _channels_first(b)
    elif b.ndim == 4 and a.ndim < 4:
        a = _channels_first(a)
    return a, b


def _channels_first(c: Tensor) -> Tensor:
    if c.ndim == 3:
        return c.permute(2, 0, 1)
    return c.reshape(-1, 1, 1) if c.ndim == 1 else c
