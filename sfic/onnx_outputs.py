"""Cut an ONNX file down to what some of its outputs need, in memory, without the `onnx` package.

ONNX Runtime runs every node of a graph, whichever output is asked for. Leaving out the other
outputs and the nodes and weights that only they need is how one file serves previews at a fraction
of the cost. Only the few bytes of protobuf framing that this takes are read here; graphs with
subgraphs
(If, Loop) are not cut.
"""

from __future__ import annotations

from collections.abc import Iterator

from sfic.errors import BundleError

__all__ = ["keep_outputs", "output_names"]

# Field numbers of onnx.proto: ModelProto.graph; GraphProto.node, initializer, input, output;
# ValueInfoProto.name; TensorProto.name; NodeProto.input, output.
_GRAPH, _NODE, _INITIALIZER, _INPUT, _OUTPUT, _NAME, _TENSOR_NAME = 7, 1, 5, 11, 12, 1, 8
_NODE_INPUT, _NODE_OUTPUT = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BundleError("not an ONNX file: a number is too long")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """(field number, start of the field, start of its value, end) of each field of a message."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value = at
            _, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            value, at = at, at + (4 if kind == _FIXED32 else 8)
        elif kind == _BYTES:
            size, value = _varint(data, at)
            at = value + size
        else:
            raise BundleError(f"not an ONNX file: wire type {kind}")
        if at > len(data):
            raise BundleError("not an ONNX file: it is cut")
        yield key >> 3, start, value, at


def _names(value: memoryview, field: int) -> list[str]:
    """The strings of one field of a message."""
    return [bytes(value[v:e]).decode() for number, _, v, e in _fields(value) if number == field]


def _graph(model: memoryview) -> tuple[int, int, int]:
    for number, start, value, end in _fields(model):
        if number == _GRAPH:
            return start, value, end
    raise BundleError("not an ONNX file: there is no graph in it")


def output_names(model: bytes) -> list[str]:
    """Names of the graph's outputs, in order. BundleError when it is not an ONNX file."""
    view = memoryview(model)
    try:
        _, start, end = _graph(view)
        graph = view[start:end]
        infos = [graph[v:e] for number, _, v, e in _fields(graph) if number == _OUTPUT]
        return [_names(info, _NAME)[0] for info in infos]
    except IndexError as error:
        raise BundleError("not an ONNX file: it is cut") from error


def keep_outputs(model: bytes, wanted: set[str], given: str | None = None) -> bytes:
    """The model with what the outputs in `wanted` need; BundleError when one is not there.

    `given`: another output that becomes an input, in place of all that makes it. Inputs that are
    not needed are left out, too.
    """
    missing = (wanted | ({given} if given else set())) - set(output_names(model))
    if missing:
        raise BundleError(f"the graph has no output {sorted(missing)}")
    view = memoryview(model)
    start, value, end = _graph(view)
    graph = view[value:end]
    fields = list(_fields(graph))
    needed = set(wanted)
    for number, _, inner, last in reversed(fields):  # nodes come in the order of their use
        if number == _NODE:
            node = graph[inner:last]
            if needed.intersection(_names(node, _NODE_OUTPUT)) - {given}:
                needed.update(_names(node, _NODE_INPUT))
    kept = bytearray()
    for number, first, inner, last in fields:
        part = graph[inner:last]
        if number == _OUTPUT:
            name = _names(part, _NAME)[0]
            keep = name in wanted
            if name == given:
                kept.append(_INPUT << 3 | _BYTES)  # inputs and outputs are described alike
                kept += graph[first + 1 : last]
        elif number == _INPUT:
            keep = _names(part, _NAME)[0] in needed
        elif number == _NODE:
            keep = bool(needed.intersection(_names(part, _NODE_OUTPUT)) - {given})
        elif number == _INITIALIZER:
            keep = _names(part, _TENSOR_NAME)[0] in needed
        else:
            keep = True
        if keep:
            kept += graph[first:last]
    size = len(kept)
    header = bytearray([_GRAPH << 3 | _BYTES])
    while size >= 0x80:
        header.append(size & 0x7F | 0x80)
        size >>= 7
    header.append(size)
    return bytes(view[:start]) + bytes(header) + bytes(kept) + bytes(view[end:])
