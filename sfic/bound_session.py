"""ONNX Runtime with buffers of its own, as a GPU wants it: IO binding, float16, CUDA graphs.

What belongs here: running one of the prior's graphs with fixed batch sizes and buffers on a device.
When it is used is `sfic.runtime`'s to say. The device may be the CPU, which is how it is tested
where there is no GPU: no faster there than a plain session.

- The graph computes in float16; its inputs and outputs stay float32. On the demo's face the picture
  of 1024x1024 differs by 77 dB from that in float32.
- A batch of N faces is padded to the next of `BATCHES`. For each there is one plan: a session with
  that batch size written into the graph, so that nothing of it is left to compute from shapes, and
  buffers for its inputs and outputs that stay where they are.
- So CUDA can record a run as one graph of kernels, and replay it. Where ONNX Runtime says that it
  cannot (some node is not on the GPU), the plan runs without.
- Faces of callers that wait for the same outputs run together, up to the largest batch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import structlog

from sfic.errors import BundleError, MissingExtra, ProviderUnavailable

__all__ = ["BATCHES", "CUDA", "BoundSession", "in_float16"]

CUDA: Final = "CUDAExecutionProvider"
BATCHES: Final = (1, 2, 4, 8, 16)
_BATCH: Final = "N"  # the name that the graphs give the number of faces
_ROW: Final = "row"  # input of `sfic.generator`'s graph: 0 where all rows are given

_Array = npt.NDArray[Any]

_log = structlog.get_logger(__name__)


def in_float16(network: bytes) -> bytes:
    """The network, computing in float16; `row`, where it is an input, is the constant 0.

    MissingExtra without the package `onnx`.
    """
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise MissingExtra("onnx is not installed: pip install 'sfic[gpu]'") from error
    try:
        model = onnx.load_model_from_string(network)
    except Exception as error:
        raise BundleError(f"not an ONNX file: {error}") from error
    inputs = model.graph.input
    for node in [node for node in inputs if node.name == _ROW]:
        inputs.remove(node)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), _ROW))
    half: bytes = convert_float_to_float16(model, keep_io_types=True).SerializeToString()
    return half


@dataclass(eq=False)
class _Call:
    """What one caller asks, and what it gets."""

    outputs: tuple[str, ...]
    inputs: Mapping[str, _Array]
    results: list[_Array] = field(default_factory=list)
    error: Exception | None = None
    done: bool = False

    @property
    def kind(self) -> tuple[Any, ...]:
        """Alike in calls that can run together."""
        return self.outputs, sorted((name, x.shape[1:]) for name, x in self.inputs.items())

    @property
    def count(self) -> int:
        return len(next(iter(self.inputs.values())))


class BoundSession:
    """The part of `onnxruntime.InferenceSession` that the prior uses. Safe to share by threads."""

    def __init__(self, network: Path | bytes, threads: int = 0, *, device: str = "cuda") -> None:
        """Read a network, a file or its bytes. `device`: "cuda", or "cpu" for tests.

        Raises BundleError when it cannot be read, ProviderUnavailable when the device does not
        start, MissingExtra without the package `onnx`.
        """
        try:
            content = network if isinstance(network, bytes) else network.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot load {network!r}: {error}") from error
        self._network = in_float16(content)
        self._threads = threads
        self._device = device
        self._waiting: list[_Call] = []
        self._waiting_lock = threading.Lock()
        self._running = threading.Lock()
        self._plans: dict[tuple[int, tuple[str, ...]], _Plan] = {}
        session = _session(self._network, 1, threads, device, recorded=False)
        self._inputs = session.get_inputs()
        self._outputs = session.get_outputs()

    def get_inputs(self) -> Sequence[Any]:
        """As ONNX Runtime describes them, for one face."""
        inputs: Sequence[Any] = self._inputs
        return inputs

    def get_outputs(self) -> Sequence[Any]:
        """As ONNX Runtime describes them, for one face."""
        outputs: Sequence[Any] = self._outputs
        return outputs

    def get_providers(self) -> list[str]:
        """The execution provider; "bound CPU" of a test."""
        return [CUDA if self._device == "cuda" else "bound CPU"]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, _Array]) -> list[_Array]:
        """The outputs named, of inputs [N, ...], float32, each of the same N."""
        call = _Call(tuple(outputs), inputs)
        with self._waiting_lock:
            self._waiting.append(call)
        with self._running:  # the buffers are one run's at a time, and so is the device
            if not call.done:
                self._serve(self._taken(call))
        if call.error is not None:
            raise call.error
        return call.results

    def _taken(self, first: _Call) -> list[_Call]:
        """This call, and those that wait for the same, as far as a batch goes."""
        taken, count = [first], first.count
        with self._waiting_lock:
            self._waiting.remove(first)
            for call in list(self._waiting):
                if call.kind == first.kind and count + call.count <= BATCHES[-1]:
                    self._waiting.remove(call)
                    taken.append(call)
                    count += call.count
        return taken

    def _serve(self, calls: Sequence[_Call]) -> None:
        try:
            inputs = {
                name: np.concatenate([call.inputs[name] for call in calls])
                for name in calls[0].inputs
            }
            count = sum(call.count for call in calls)
            parts = [
                self._run(
                    calls[0].outputs, {k: v[at : at + BATCHES[-1]] for k, v in inputs.items()}
                )
                for at in range(0, count, BATCHES[-1])
            ]
            whole = [np.concatenate(part) for part in zip(*parts, strict=True)]
            ends = np.cumsum([call.count for call in calls])
            for call, end in zip(calls, ends.tolist(), strict=True):
                call.results = [output[end - call.count : end] for output in whole]
        except Exception as error:
            for call in calls:
                call.error = error
        for call in calls:
            call.done = True

    def _run(self, outputs: tuple[str, ...], inputs: Mapping[str, _Array]) -> list[_Array]:
        count = len(next(iter(inputs.values())))
        batch = next(size for size in BATCHES if size >= count)
        key = batch, outputs
        if key not in self._plans:
            self._plans[key] = _plan(self._network, key, inputs, self._threads, self._device)
        return [output[:count] for output in self._plans[key].run(inputs)]


class _Plan:
    """A session of one batch size, and its buffers on the device."""

    def __init__(
        self,
        session: Any,
        outputs: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        device: str,
    ) -> None:
        """`shapes`: of the inputs, batch included."""
        from onnxruntime import OrtValue

        self._session = session
        self._inputs = {
            name: OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), device, 0)
            for name, shape in shapes.items()
        }
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._outputs = []
        for node in session.get_outputs():
            if node.name in outputs:
                shape = tuple(int(side) for side in node.shape)
                empty = OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
                self._binding.bind_ortvalue_output(node.name, empty)
                self._outputs.append((node.name, empty))
        self._order = [[name for name, _ in self._outputs].index(name) for name in outputs]
        self._session.run_with_iobinding(self._binding)  # the first run records, where it can

    def run(self, inputs: Mapping[str, _Array]) -> list[_Array]:
        """Outputs of the whole batch; the last row given stands for those that are missing."""
        for name, value in self._inputs.items():
            rows = np.ascontiguousarray(inputs[name], np.float32)
            if len(rows) < value.shape()[0]:
                rows = np.concatenate((rows, np.repeat(rows[-1:], value.shape()[0] - len(rows), 0)))
            value.update_inplace(rows)
        self._session.run_with_iobinding(self._binding)
        return [np.array(self._outputs[i][1].numpy()) for i in self._order]


def _plan(
    network: bytes,
    key: tuple[int, tuple[str, ...]],
    inputs: Mapping[str, _Array],
    threads: int,
    device: str,
) -> _Plan:
    batch, outputs = key
    shapes = {name: (batch, *value.shape[1:]) for name, value in inputs.items()}
    if device == "cuda":
        try:
            session = _session(network, batch, threads, device, recorded=True)
            return _Plan(session, outputs, shapes, device)
        except ProviderUnavailable:
            raise
        except Exception as error:
            _log.warning("no CUDA graph", batch=batch, why=str(error))
    return _Plan(_session(network, batch, threads, device, recorded=False), outputs, shapes, device)


def _session(network: bytes, batch: int, threads: int, device: str, *, recorded: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_free_dimension_override_by_name(_BATCH, batch)
    cpu = "CPUExecutionProvider"
    cuda = (CUDA, {"enable_cuda_graph": "1"} if recorded else {})
    session = ort.InferenceSession(network, options, providers=[cuda, cpu][device == "cpu" :])
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise ProviderUnavailable("CUDA was asked for, but ONNX Runtime could not start it")
    return session
