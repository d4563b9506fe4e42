"""OpenVINO in ONNX Runtime's place, on CPUs: two to five times as fast where they have bfloat16.

What belongs here: running the bundle's ONNX graphs in OpenVINO, and rewriting the parts of them
that it is slow with. When it is used is `sfic.runtime`'s to say.

The graphs are in the form that ONNX Runtime is fastest with. Four things are changed on loading,
none of which changes what is computed (docs/performance.md has what they bring):

- a product of a weight, which may be scaled for each face, with flattened features becomes a 1x1
  convolution of features that are scaled instead;
- an inverse Haar step, a transposed convolution of few inputs a channel, becomes a dense 1x1
  convolution and a depth-to-space: many more multiply-adds, which matrix units do not notice;
- what is added to features gets their number of axes, without which they change layout for it;
- constant noise that is added to features is given to each run as an input, for OpenVINO would add
  it to the bias, and then read a constant of the features' full size.

Where it computes in bfloat16, weights of networks that the bundle has in float16 are held so: half
of the memory, and of what is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sfic import compiled
from sfic.errors import BundleError, MissingExtra

__all__ = ["OPENVINO", "OpenVinoSession", "has_bfloat16"]

OPENVINO: Final = "OpenVINO"
_BLOB: Final = "blob"  # of what is kept: the graph; the other arrays are its noise
_ROW: Final = "row"  # input of `sfic.generator`'s graph: 0 where all rows are given

_Array = npt.NDArray[Any]
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


_starting = threading.Lock()


def _core() -> Any:
    with _starting:
        return _started()


@cache
def _started() -> Any:
    try:
        import openvino
        from openvino import opset13 as ops
    except ImportError as error:
        raise MissingExtra("OpenVINO is not installed: pip install 'sfic[cpu]'") from error
    core = openvino.Core()
    # Its binding sets itself up when arrays are first given and read, and two threads that do so
    # for the first time at once wait for each other for ever.
    given = [ops.parameter([1], kind, str(i)) for i, kind in enumerate((np.float32, np.int64))]
    request = core.compile_model(openvino.Model(given, given), "CPU").create_infer_request()
    request.infer({0: np.zeros(1, np.float32), 1: np.zeros(1, np.int64)})
    request.get_output_tensor(0).data.copy()
    return core


def has_bfloat16() -> bool:
    """Whether OpenVINO is installed and this CPU multiplies bfloat16 (AMX, AVX-512 BF16)."""
    return find_spec("openvino") is not None and "BF16" in _core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    )


class _Node(NamedTuple):
    """An input or output, as ONNX Runtime describes one."""

    name: str
    shape: list[int | str]


class OpenVinoSession:
    """The part of `onnxruntime.InferenceSession` that the product uses. Safe to share by threads.

    A graph is compiled for fixed shapes, which is much faster: for one face when it is loaded, for
    others when it first sees them. What was compiled once is kept (`sfic.compiled`). It runs in
    bfloat16 where the CPU has it, else in float32.
    """

    def __init__(self, network: Path | bytes, threads: int = 0, *, exact: bool = False) -> None:
        """Read a network, a file or its bytes. `threads`: of one run, 0: all cores.

        `exact`: in float32 everywhere. Raises BundleError when it cannot be read, MissingExtra
        without OpenVINO.
        """
        self._network = network if isinstance(network, bytes) else str(network)
        self._threads = threads
        self._exact = exact
        self._lock = threading.Lock()
        self._compiled: dict[_Shapes, _Compiled] = {}
        self._digest = self._content()
        self._name = self._digest + _environment(threads, exact)
        described = self._described()
        model = None
        if described is None:
            model = self._read()
            inputs, outputs = (
                [_described(port) for port in ports] for ports in (model.inputs, model.outputs)
            )
            described = inputs, outputs
            compiled.store(self._key(), {"described": np.array(json.dumps(described))})
        self._inputs, self._outputs = described
        sides = [side for node in self._inputs for side in node.shape[1:]]
        if all(isinstance(side, int) for side in sides):
            one = {n.name: [1, *map(int, n.shape[1:])] if n.shape else [] for n in self._inputs}
            given = {name: np.zeros(shape) for name, shape in one.items()}
            self._compiled[_shapes(given)] = self._prepare(given, model)

    def get_inputs(self) -> list[_Node]:
        """Names and shapes of the inputs; a free axis is a string."""
        return self._inputs

    def get_outputs(self) -> list[_Node]:
        """Names and shapes of the outputs."""
        return self._outputs

    def get_providers(self) -> list[str]:
        """What it runs on."""
        return [OPENVINO]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, _Array]) -> list[_Array]:
        """The outputs named, for these inputs; BundleError when one is missing."""
        missing = sorted({node.name for node in self._inputs} - set(inputs))
        graph = None if missing else self._compiled_for(inputs)
        given = {k: v for k, v in inputs.items() if graph and k in graph.inputs}
        if graph is None or len(given) != graph.needed:
            # It would compute with whatever its memory holds.
            raise BundleError(f"a network lacks inputs: {missing or sorted(given)}")
        with graph.request() as request:
            request.infer(given)
            return [np.array(request.get_tensor(name).data) for name in outputs]

    def _compiled_for(self, inputs: Mapping[str, _Array]) -> _Compiled:
        key = _shapes(inputs)
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._prepare(inputs)
            return self._compiled[key]

    def _content(self) -> bytes:
        """SHA-256 of the network."""
        network = self._network
        try:
            content = network if isinstance(network, bytes) else Path(network).read_bytes()
        except OSError as error:
            raise BundleError(f"cannot load {network!r}: {error}") from error
        return hashlib.sha256(content).digest()

    def _key(self, shapes: _Shapes | None = None) -> str:
        """Name of what is kept of the graph for inputs of these shapes; None: of the network."""
        return hashlib.sha256(self._name + repr(shapes).encode()).hexdigest()

    def _described(self) -> tuple[list[_Node], list[_Node]] | None:
        """Inputs and outputs, where they are kept."""
        known = compiled.load(self._key())
        if known is None:
            return None
        try:
            inputs, outputs = json.loads(str(known["described"]))
            return [_Node(*node) for node in inputs], [_Node(*node) for node in outputs]
        except (KeyError, ValueError, TypeError):
            compiled.drop(self._key())
            return None

    def _prepare(self, inputs: Mapping[str, _Array], model: Any = None) -> _Compiled:
        """The graph for inputs of these shapes, as it is kept, or compiled and kept."""
        key, settings = self._key(_shapes(inputs)), self._settings()
        known = compiled.load(key)
        if known is not None:
            try:
                noise = {name: value for name, value in known.items() if name != _BLOB}
                return _Compiled(_imported(known[_BLOB], settings), noise)
            except (KeyError, ValueError, TypeError, RuntimeError):
                compiled.drop(key)
        model = self._read() if model is None else model
        noise = self._rewrite(model, inputs)
        made = _core().compile_model(model, "CPU", settings)
        if compiled.can_store():
            with contextlib.suppress(RuntimeError):  # a graph that cannot be exported
                compiled.store(key, {**noise, _BLOB: _exported(made)})
        return _Compiled(made, noise)

    def _settings(self) -> dict[str, Any]:
        return {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if has_bfloat16() and not self._exact else "f32",
            # A service shares its cores with others.
            "ENABLE_CPU_PINNING": False,
        }

    def _read(self) -> Any:
        try:
            if self._content() != self._digest:
                raise BundleError("a network's file was exchanged while it was in use")
            # Not the bytes of a file: constants would lie in them, and they would not live on.
            return _core().read_model(model=self._network)
        except RuntimeError as error:
            name = "the network" if isinstance(self._network, bytes) else self._network
            raise BundleError(f"cannot load {name}: {error}") from error

    def _rewrite(self, model: Any, inputs: Mapping[str, _Array]) -> dict[str, _Array]:
        """See the module; returns the values of new inputs that are the same in all runs."""
        for port in model.inputs:
            if port.any_name == _ROW and not inputs[_ROW].any():
                _replace_by_zero(model, port)
        model.reshape({port.any_name: list(inputs[port.any_name].shape) for port in model.inputs})
        half = any(n.get_element_type().to_string() == "f16" for n in _nodes(model, "Constant"))
        _fold_constants(model)
        noise = _give_noise(model)
        _convolve(model)
        _shuffle_haar(model)
        if half and has_bfloat16() and not self._exact:
            _store_in_float16(model)
        return noise


class _Compiled:
    """A graph for inputs of fixed shapes, and its requests: one for each run at a time.

    `noise`: values of inputs that are the same in all runs.
    """

    def __init__(self, model: Any, noise: Mapping[str, _Array]) -> None:
        # A compiled graph may know an input by a second name as well.
        self.inputs = {name for port in model.inputs for name in port.names} - set(noise)
        self.needed = len(model.inputs) - len(noise)
        self._noise = noise
        self._model = model
        self._free = [self._request()]  # the first now: what does not fit says so here

    def _request(self) -> Any:
        request = self._model.create_infer_request()
        for name, values in self._noise.items():
            request.get_tensor(name).data[:] = values
        return request

    @contextmanager
    def request(self) -> Iterator[Any]:
        try:
            request = self._free.pop()
        except IndexError:
            request = self._request()
        yield request
        self._free.append(request)


def _exported(model: Any) -> _Array:
    """A compiled model as bytes, uint8 [n]."""
    return np.frombuffer(model.export_model().getvalue(), np.uint8)


def _imported(blob: _Array, settings: Mapping[str, Any]) -> Any:
    """The reverse of `_exported`; RuntimeError for what is not one."""
    from openvino import Tensor

    return _core().import_model(Tensor(blob), "CPU", settings)


def _environment(threads: int, exact: bool) -> bytes:
    """Digest of all that a compiled graph depends on, beside the network and shapes."""
    core = _core()
    import openvino

    try:
        rewriting = Path(__file__).read_bytes()
    except OSError:  # not a file, but in an archive
        rewriting = version("sfic").encode()
    told = (
        openvino.get_version(),
        core.get_property("CPU", "FULL_DEVICE_NAME"),
        sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        (threads or os.cpu_count(), exact, has_bfloat16()),
    )
    return hashlib.sha256(rewriting + repr(told).encode()).digest()


def _shapes(inputs: Mapping[str, _Array]) -> _Shapes:
    """What a graph is compiled for: shapes, and whether the row, where there is one, is 0."""
    shapes = [(name, np.shape(value)) for name, value in inputs.items()]
    if _ROW in inputs:
        shapes.append((f"{_ROW} is {bool(np.any(inputs[_ROW]))}", ()))
    return tuple(sorted(shapes))


def _described(port: Any) -> _Node:
    shape = port.get_partial_shape()
    axes = [a.get_length() if a.is_static else "N" for a in shape]
    return _Node(port.any_name, axes)


# -- rewriting; the nodes of a model are OpenVINO's, whose types its package does not state


def _constant(node: Any) -> _Array | None:
    """The value of a constant, seen through casts and changes of shape; else None."""
    kind = node.get_type_name()
    if kind == "Constant":
        value: _Array = node.data
        return value
    if kind not in ("Convert", "Reshape", "Unsqueeze"):
        return None
    inner = _constant(node.input_value(0).get_node())
    if inner is None:
        return None
    return inner if kind == "Convert" else inner.reshape(node.output(0).get_shape())


def _nodes(model: Any, kind: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def _replace(node: Any, new: Any) -> None:
    from openvino.utils import replace_node

    replace_node(node, new)


def _replace_by_zero(model: Any, port: Any) -> None:
    """Make a scalar input a constant."""
    from openvino import opset13 as ops

    parameter = port.get_node()
    _replace(parameter, ops.constant(np.zeros((), port.get_element_type().to_dtype())))
    model.remove_parameter(parameter)


def _fold_constants(model: Any) -> None:
    from openvino.passes import ConstantFolding, Manager

    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)


def _store_in_float16(model: Any) -> None:
    """Weights that were float16, and are computed with in bfloat16: half of the memory and file."""
    try:
        # What `openvino.save_model` does by default, which has no other name in Python.
        from openvino._offline_transformations import compress_model_transformation
    except ImportError:
        return
    compress_model_transformation(model)


def _give_noise(model: Any) -> dict[str, _Array]:
    """What is added to features [N, C, H, W]: [C, 1, 1] becomes [1, C, 1, 1], [1, H, W] an input.

    The values of these inputs, by name.
    """
    from openvino import opset13 as ops

    noise: dict[str, _Array] = {}
    for node in _nodes(model, "Add"):
        for port in node.inputs():
            shape = list(port.get_shape())
            if len(node.output(0).get_shape()) != 4 or len(shape) != 3:
                continue
            source = port.get_source_output()
            values = _constant(source.get_node())
            if values is None or shape[1:] == [1, 1]:
                wider = ops.unsqueeze(source, np.array([0]))
            else:
                name = f"noise_{len(noise)}"
                wider = ops.parameter([1, *shape], np.float32, name)
                wider.output(0).set_names({name})
                model.add_parameters([wider])
                noise[name] = values[None]
            port.replace_source_output(wider.output(0))
    return noise


def _pointwise(features: Any, weight: _Array) -> Any:
    """features [N, C, H, W] by weight [O, C] -> [N, O, H, W]."""
    from openvino import opset13 as ops

    kernel = ops.constant(np.ascontiguousarray(weight[:, :, None, None], np.float32))
    return ops.convolution(features, kernel, [1, 1], [0, 0], [0, 0], [1, 1])


def _convolve(model: Any) -> None:
    """weight [O, C], or weight * scale [N, 1, C] or [N, O, 1], by features [N, C, H W]."""
    from openvino import opset13 as ops

    for node in _nodes(model, "MatMul"):
        flat, back = node.input_value(1).get_node(), _only_user(node)
        if any(node.get_attributes().values()) or not _flattens(flat, back):
            continue
        features, factor = flat.input_value(0), node.input_value(0).get_node()
        weight, scale = _constant(factor), None
        if weight is None and factor.get_type_name() == "Multiply":
            for own, other in ((0, 1), (1, 0)):
                if (found := _constant(factor.input_value(own).get_node())) is not None:
                    weight, scale = found, factor.input_value(other)
        if weight is None or weight.ndim != 2:
            continue
        if scale is None:
            _replace(back, _pointwise(features, weight))
            continue
        faces, rows, _ = scale.get_shape()
        columns = ops.reshape(scale, np.array([faces, -1, 1, 1]), False)
        if rows > 1:
            _replace(back, ops.multiply(_pointwise(features, weight), columns))
            continue
        before = features.get_node()
        if _is_depthwise(before) and _only_user(before) is flat:
            # A factor of a channel goes through a depthwise convolution, and before it is an
            # activation, which the multiplication becomes one pass with.
            port = before.input(0)
            scaled = ops.multiply(port.get_source_output(), columns)
            port.replace_source_output(scaled.output(0))
        else:
            features = ops.multiply(features, columns)
        _replace(back, _pointwise(features, weight))


def _flattens(flat: Any, back: Any) -> bool:
    """Whether two nodes are [N, C, H, W] -> [N, C, H W] and [N, O, H W] -> [N, O, H, W]."""
    if back is None or any(node.get_type_name() != "Reshape" for node in (flat, back)):
        return False
    before, after = flat.input_value(0).get_shape(), back.output(0).get_shape()
    if len(before) != 4 or len(after) != 4 or list(before)[2:] != list(after)[2:]:
        return False
    return list(flat.output(0).get_shape()) == [*list(before)[:2], before[2] * before[3]]


def _is_depthwise(node: Any) -> bool:
    if node.get_type_name() != "GroupConvolution":
        return False
    _, outputs, inputs, *_ = node.input_value(1).get_shape()  # of each group
    return bool(outputs == inputs == 1)


def _only_user(node: Any) -> Any:
    users = [port.get_node() for port in node.output(0).get_target_inputs()]
    return users[0] if len(users) == 1 else None


def _shuffle_haar(model: Any) -> None:
    """See `sfic.networks.generator._served_haar`: a choice of channels, then four into one."""
    from openvino import opset13 as ops

    for node in _nodes(model, "GroupConvolutionBackpropData"):
        kernel = _constant(node.input_value(1).get_node())  # [groups, inputs of each, 1, 2, 2]
        gather = node.input_value(0).get_node()
        if kernel is None or kernel.shape[2:] != (1, 2, 2) or gather.get_type_name() != "Gather":
            continue
        features, order = gather.input_value(0), _constant(gather.input_value(1).get_node())
        sides = [2 * side for side in list(features.get_shape())[2:]]
        if order is None or list(node.output(0).get_shape())[2:] != sides:
            continue
        groups, each = kernel.shape[:2]
        weight = np.zeros((groups, 4, features.get_shape()[1]), np.float32)
        channels = order.reshape(groups, each)
        for group in range(groups):
            weight[group][:, channels[group]] = kernel[group].reshape(each, 4).T
        four = _pointwise(features, weight.reshape(4 * groups, -1))
        _replace(node, ops.depth_to_space(four, "depth_first", 2))
