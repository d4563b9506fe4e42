"""Run an ONNX graph in torch, so that gradients flow through the very networks that are served.

What belongs here: the operators that the graphs of a model bundle use. Efforts 2 and 3 optimise a
face's latents through them; nothing else needs gradients at run time. Needs the `train` extra.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from sfic.errors import BundleError

Attributes = dict[str, Any]
Operator = Callable[[Sequence[Any], Attributes], Any]

_CASTS = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


def _ints(x: Tensor) -> list[int]:
    return [int(v) for v in x.reshape(-1).tolist()]


def _symmetric(pads: Sequence[int]) -> bool:
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:])


def _conv(x: Sequence[Any], a: Attributes) -> Tensor:
    value, pads = x[0], a.get("pads", [0, 0, 0, 0])
    if not _symmetric(pads):
        value, pads = F.pad(value, (pads[1], pads[3], pads[0], pads[2])), [0, 0, 0, 0]
    return F.conv2d(
        value,
        x[1],
        x[2] if len(x) > 2 else None,
        stride=a.get("strides", 1),
        padding=tuple(pads[:2]),
        dilation=a.get("dilations", 1),
        groups=a.get("group", 1),
    )


def _conv_transpose(x: Sequence[Any], a: Attributes) -> Tensor:
    pads = a.get("pads", [0, 0, 0, 0])
    if not _symmetric(pads):
        raise BundleError("ConvTranspose with uneven pads is not used by our graphs")
    return F.conv_transpose2d(
        x[0],
        x[1],
        x[2] if len(x) > 2 else None,
        stride=a.get("strides", 1),
        padding=tuple(pads[:2]),
        output_padding=a.get("output_padding", 0),
        groups=a.get("group", 1),
        dilation=a.get("dilations", 1),
    )


def _gemm(x: Sequence[Any], a: Attributes) -> Tensor:
    left = x[0].T if a.get("transA") else x[0]
    right = x[1].T if a.get("transB") else x[1]
    product = a.get("alpha", 1.0) * (left @ right)
    return product + a.get("beta", 1.0) * x[2] if len(x) > 2 else product


def _gather(x: Sequence[Any], a: Attributes) -> Tensor:
    data, index, axis = x[0], x[1], a.get("axis", 0)
    picked = data.index_select(axis, index.reshape(-1) % data.shape[axis])
    return picked.reshape((*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]))


def _reshape(x: Sequence[Any], a: Attributes) -> Tensor:
    shape = _ints(x[1])
    if not a.get("allowzero"):
        shape = [x[0].shape[i] if s == 0 else s for i, s in enumerate(shape)]
    return x[0].reshape(shape)


def _slice(x: Sequence[Any], a: Attributes) -> Tensor:
    starts, ends = _ints(x[1]), _ints(x[2])
    axes = _ints(x[3]) if len(x) > 3 and x[3] is not None else list(range(len(starts)))
    steps = _ints(x[4]) if len(x) > 4 else [1] * len(starts)
    value = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            index = [slice(None)] * value.ndim
            index[axis] = slice(start, end, step)
            value = value[tuple(index)]
        else:
            last = end if end > -(1 << 60) else None
            picked = list(range(value.shape[axis]))[start:last:step]
            value = value.index_select(axis, torch.tensor(picked, dtype=torch.long))
    return value


def _pad(x: Sequence[Any], a: Attributes) -> Tensor:
    pads = _ints(x[1])
    half = len(pads) // 2
    order: list[int] = []
    for axis in reversed(range(half)):
        order += [pads[axis], pads[half + axis]]
    fill = float(x[2]) if len(x) > 2 and x[2] is not None else 0.0
    return F.pad(x[0], order, value=fill)


def _clip(x: Sequence[Any], a: Attributes) -> Tensor:
    low = x[1] if len(x) > 1 else None
    high = x[2] if len(x) > 2 else None
    return torch.clamp(x[0], low, high)


def _depth_to_space(x: Sequence[Any], a: Attributes) -> Tensor:
    if a.get("mode", b"DCR") != b"CRD":
        raise BundleError("DepthToSpace in DCR mode is not used by our graphs")
    return F.pixel_shuffle(x[0], a["blocksize"])


def _average(x: Sequence[Any], a: Attributes) -> Tensor:
    return F.avg_pool2d(x[0], a["kernel_shape"], a.get("strides"), tuple(a.get("pads", [0, 0])[:2]))


def _split(x: Sequence[Any], a: Attributes) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    if len(x) > 1:
        return torch.split(x[0], _ints(x[1]), dim=axis)
    return torch.chunk(x[0], a["outputs"], dim=axis)


def _squeeze(x: Sequence[Any], a: Attributes) -> Tensor:
    value = x[0]
    for axis in sorted((_ints(x[1])), reverse=True):
        value = value.squeeze(axis)
    return value


def _unsqueeze(x: Sequence[Any], a: Attributes) -> Tensor:
    value = x[0]
    for axis in sorted(_ints(x[1])):
        value = value.unsqueeze(axis)
    return value


def _reduce_mean(x: Sequence[Any], a: Attributes) -> Tensor:
    axes = a.get("axes") or _ints(x[1])
    return x[0].mean(dim=axes, keepdim=bool(a.get("keepdims", 1)))


def _reduce_l2(x: Sequence[Any], a: Attributes) -> Tensor:
    axes = a.get("axes") or _ints(x[1])
    return torch.linalg.vector_norm(x[0], dim=axes, keepdim=bool(a.get("keepdims", 1)))


def _reduce_sum(x: Sequence[Any], a: Attributes) -> Tensor:
    axes = a.get("axes") or _ints(x[1])
    return x[0].sum(dim=axes, keepdim=bool(a.get("keepdims", 1)))


def _resize(x: Sequence[Any], a: Attributes) -> Tensor:
    if a.get("mode") != b"linear" or len(x) < 4 or x[3] is None:
        raise BundleError("only Resize to a size, linear, is used by our graphs")
    size = _ints(x[3])[2:]
    return F.interpolate(x[0], size=size, mode="bilinear", align_corners=False)


def _constant_of_shape(x: Sequence[Any], a: Attributes) -> Tensor:
    return torch.full(_ints(x[0]), a["value"].item()) if "value" in a else torch.zeros(_ints(x[0]))


def _div(x: Sequence[Any], a: Attributes) -> Tensor:
    if x[0].dtype.is_floating_point or x[1].dtype.is_floating_point:
        return x[0] / x[1]
    return torch.div(x[0], x[1], rounding_mode="trunc")


_OPERATORS: dict[str, Operator] = {
    "Add": lambda x, a: x[0] + x[1],
    "ArgMax": lambda x, a: x[0].argmax(dim=a.get("axis", 0), keepdim=bool(a.get("keepdims", 1))),
    "AveragePool": _average,
    "BatchNormalization": lambda x, a: F.batch_norm(
        x[0], x[3], x[4], x[1], x[2], eps=a.get("epsilon", 1e-5)
    ),
    "Cast": lambda x, a: x[0].to(_CASTS[a["to"]]),
    "Clip": _clip,
    "Concat": lambda x, a: torch.cat(list(x), dim=a["axis"]),
    "Constant": lambda x, a: a["value"],
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Equal": lambda x, a: x[0] == x[1],
    "Erf": lambda x, a: torch.erf(x[0]),
    "Expand": lambda x, a: x[0].expand(torch.broadcast_shapes(x[0].shape, tuple(_ints(x[1])))),
    "Flatten": lambda x, a: x[0].flatten(a.get("axis", 1)),
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": lambda x, a: x[0],
    "LayerNormalization": lambda x, a: F.layer_norm(
        x[0], x[1].shape, x[1], x[2] if len(x) > 2 else None, a.get("epsilon", 1e-5)
    ),
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], a.get("alpha", 0.01)),
    "MatMul": lambda x, a: x[0] @ x[1],
    "Max": lambda x, a: functools.reduce(torch.maximum, x),
    "Min": lambda x, a: functools.reduce(torch.minimum, x),
    "Mod": lambda x, a: x[0] % x[1],
    "Mul": lambda x, a: x[0] * x[1],
    "Neg": lambda x, a: -x[0],
    "Pad": _pad,
    "Reciprocal": lambda x, a: torch.reciprocal(x[0]),
    "ReduceL2": _reduce_l2,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": lambda x, a: torch.round(x[0]),
    "Shape": lambda x, a: torch.tensor(x[0].shape, dtype=torch.long),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": lambda x, a: torch.sqrt(x[0]),
    "Squeeze": _squeeze,
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": lambda x, a: torch.tanh(x[0]),
    "Tile": lambda x, a: x[0].tile(_ints(x[1])),
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda x, a: torch.where(x[0], x[1], x[2]),
}


def _attributes(node: onnx.NodeProto) -> Attributes:
    values: Attributes = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = torch.from_numpy(numpy_helper.to_array(value).copy())
        values[attribute.name] = value
    if node.op_type == "Split":
        values["outputs"] = len(node.output)
    return values


class OnnxGraph:
    """One ONNX file as a differentiable function of named tensors."""

    def __init__(self, path: Path) -> None:
        """Read the graph; BundleError when it uses an operator that is not known here."""
        graph = onnx.load(str(path)).graph
        self._weights = {
            t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer
        }
        for name, value in self._weights.items():
            if value.dtype == torch.float16:
                self._weights[name] = value.float()
        self._nodes = [
            (n.op_type, list(n.input), list(n.output), _attributes(n)) for n in graph.node
        ]
        self.outputs = [o.name for o in graph.output]
        unknown = {n[0] for n in self._nodes} - set(_OPERATORS)
        if unknown:
            raise BundleError(f"{path}: operators {sorted(unknown)} are not known here")

    def __call__(self, inputs: Mapping[str, Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """The outputs named in `wanted`, by running only the nodes that they need."""
        needed = set(wanted)
        plan = []
        for node in reversed(self._nodes):
            if needed.intersection(node[2]):
                plan.append(node)
                needed.update(node[1])
        values: dict[str, Any] = dict(self._weights)
        values.update(inputs)
        for kind, names, outputs, attributes in reversed(plan):
            result = _OPERATORS[kind]([values[n] if n else None for n in names], attributes)
            if isinstance(result, tuple):
                values.update(zip(outputs, result, strict=True))
            else:
                values[outputs[0]] = result
        return [values[name] for name in wanted]
