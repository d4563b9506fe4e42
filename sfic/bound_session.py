"""ONNX Runtime with buffers of its own, as a GPU wants it: IO binding, float16, CUDA graphs.

What belongs here: running one of the prior's graphs with fixed batch sizes and buffers on a device.
When it is used is `sfic.runtime`'s to say. The device may be the CPU, which is how it is tested
where there is no GPU: no faster there than a plain session, and in float32 but for weights.

- The graph computes in float16; its inputs and outputs stay float32.
- A batch of N faces is padded to the next of `BATCHES`. For each there is one plan: a session with
  that batch size written into the graph, so that nothing of it is left to compute from shapes, and
  buffers for its inputs and outputs that stay where they are. That of one face is made when the
  network is loaded, the others when they are first wanted.
- So CUDA can record a run as one graph of kernels, and replay it. Where ONNX Runtime says that it
  cannot (some node is not on the GPU), the plan runs without.
- One thread of the process does all that touches the device: CUDA records what any thread does, and
  ONNX Runtime keeps a recording for the thread that made it. Callers wait for it, and faces that
  wait for the same network run together, up to the largest batch. A batch that fails is tried again
  as single calls, and such large batches are not made again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from sfic.errors import BundleError, InvalidInput, MissingExtra, ProviderUnavailable, SficError

__all__ = ["BATCHES", "CUDA", "BoundSession", "gpu_starts", "in_float16"]

CUDA: Final = "CUDAExecutionProvider"
BATCHES: Final = (1, 2, 4, 8, 16)
_BATCH: Final = "N"  # the name that the graphs give the number of faces
_ROW: Final = "row"  # input of `sfic.generator`'s graph: 0 where all rows are given

_Array = npt.NDArray[Any]

_log = structlog.get_logger(__name__)


def _onnx() -> Any:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingExtra("onnx is not installed: pip install 'sfic[gpu]'") from error
    return onnx


def in_float16(network: bytes) -> bytes:
    """The network, computing in float16; `row`, where it is an input, is the constant 0.

    MissingExtra without the package `onnx`.
    """
    onnx = _onnx()
    from onnxruntime.transformers.float16 import convert_float_to_float16

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


@cache
def gpu_starts() -> bool:
    """Whether ONNX Runtime's CUDA provider is there and runs something; says why not, once."""
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        return False
    try:
        helper = _onnx().helper
        kind = _onnx().TensorProto.FLOAT
        given, made = (helper.make_tensor_value_info(x, kind, [_BATCH, 1]) for x in "xy")
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])], "probe", [given], [made]
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        BoundSession(model.SerializeToString()).run(["y"], {"x": np.ones((1, 1), np.float32)})
    except SficError as error:
        _log.warning("no GPU", why=error.message)
        return False
    return True


class _Node(NamedTuple):
    """An input or output, as ONNX Runtime describes one."""

    name: str
    shape: tuple[int, ...]


@dataclass(eq=False)
class _Call:
    """What one caller asks: float32 [N, ...] of each input; gets that of each output."""

    inputs: Mapping[str, _Array]
    count: int
    answer: Future[dict[str, _Array]] = field(default_factory=Future)


@cache
def _device_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "device")


class BoundSession:
    """The part of `onnxruntime.InferenceSession` that the prior uses. Safe to share by threads."""

    def __init__(self, network: Path | bytes, threads: int = 0, *, device: str = "cuda") -> None:
        """Read a network, a file or its bytes, and run it once.

        `device`: "cuda", or "cpu" in tests.
        Raises BundleError when it cannot be read or run, ProviderUnavailable when the device does
        not start, MissingExtra without the package `onnx`.
        """
        try:
            content = network if isinstance(network, bytes) else network.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot load {network!r}: {error}") from error
        self._network = in_float16(content)
        self._threads = threads
        self._device = device
        self._most = BATCHES[-1]
        self._waiting: list[_Call] = []
        self._lock = threading.Lock()
        self._plans: dict[int, _Plan] = {}
        first = _device_thread().submit(self._plan, 1).result()
        self._inputs, self._outputs = first.inputs, first.outputs

    def get_inputs(self) -> Sequence[_Node]:
        """Names and shapes, for one face."""
        return self._inputs

    def get_outputs(self) -> Sequence[_Node]:
        """Names and shapes, for one face."""
        return self._outputs

    def get_providers(self) -> list[str]:
        """The execution provider; "bound CPU" in tests."""
        return [CUDA if self._device == "cuda" else "bound CPU"]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, _Array]) -> list[_Array]:
        """The outputs named, of inputs [N, ...], float32, each of the same N; else InvalidInput."""
        counts = {len(x) for x in inputs.values()}
        shapes = {name: tuple(x.shape[1:]) for name, x in inputs.items()}
        wanted = {node.name: node.shape[1:] for node in self._inputs}
        if shapes != wanted or len(counts) != 1 or not min(counts):
            given = {name: x.shape for name, x in inputs.items()}
            raise InvalidInput(f"a network of inputs {wanted}, of one face, is given {given}")
        call = _Call(inputs, counts.pop())
        with self._lock:
            self._waiting.append(call)
        _device_thread().submit(self._serve)
        answer = call.answer.result()
        return [answer[name] for name in outputs]

    # -- on the device's thread

    def _serve(self) -> None:
        """Answer who waits longest, and others with it."""
        with self._lock:
            calls = self._waiting[:1]
            for call in self._waiting[1:]:
                if sum(c.count for c in calls) + call.count <= self._most:
                    calls.append(call)
            for call in calls:
                self._waiting.remove(call)
        if not calls:
            return  # served with an earlier one
        count = sum(call.count for call in calls)
        try:
            made = self._run({n: _joined([c.inputs[n] for c in calls]) for n in calls[0].inputs})
        except Exception as error:
            if len(calls) > 1:
                self._most = max(1, min(self._most, count) // 2)
                _log.warning("a batch failed", faces=count, most=self._most, why=str(error))
                with self._lock:
                    self._waiting[:0] = calls
                for _ in calls:
                    self._serve()
                return
            calls[0].answer.set_exception(error)
            return
        end = 0
        for call in calls:
            begin, end = end, end + call.count
            call.answer.set_result({name: value[begin:end] for name, value in made.items()})

    def _run(self, inputs: Mapping[str, _Array]) -> dict[str, _Array]:
        count = len(next(iter(inputs.values())))
        parts = []
        for at in range(0, count, self._most):
            part = {name: value[at : at + self._most] for name, value in inputs.items()}
            given = min(self._most, count - at)
            plan = self._plan(next(size for size in BATCHES if size >= given))
            parts.append({name: value[:given] for name, value in plan.run(part).items()})
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}

    def _plan(self, batch: int) -> _Plan:
        if batch not in self._plans:
            self._plans[batch] = self._made(batch)
        return self._plans[batch]

    def _made(self, batch: int) -> _Plan:
        if self._device == "cuda":
            try:
                return _Plan(self._network, batch, self._threads, self._device, recorded=True)
            except ProviderUnavailable:
                raise
            except SficError as error:
                _log.warning("no CUDA graph", batch=batch, why=error.message)
        return _Plan(self._network, batch, self._threads, self._device, recorded=False)


class _Plan:
    """A session of one batch size, and its buffers on the device; it has run once."""

    def __init__(
        self, network: bytes, batch: int, threads: int, device: str, *, recorded: bool
    ) -> None:
        """`recorded`: as a CUDA graph. BundleError when it does not run."""
        try:
            session = _session(network, batch, threads, device, recorded)
            self.inputs, self.outputs = (
                [_Node(node.name, tuple(int(side) for side in node.shape)) for node in nodes]
                for nodes in (session.get_inputs(), session.get_outputs())
            )
            self._session, self._binding = session, session.io_binding()
            self._given = {node.name: _buffer(node, device) for node in self.inputs}
            self._made = {node.name: _buffer(node, device) for node in self.outputs}
            for name, value in self._given.items():
                self._binding.bind_ortvalue_input(name, value)
            for name, value in self._made.items():
                self._binding.bind_ortvalue_output(name, value)
            session.run_with_iobinding(self._binding)  # records, where it is to
        except SficError:
            raise
        except Exception as error:
            raise BundleError(f"a network does not run on {device}: {error}") from error

    def run(self, inputs: Mapping[str, _Array]) -> dict[str, _Array]:
        """All outputs of the whole batch; the last row given stands for those that are missing."""
        for name, value in self._given.items():
            rows = np.ascontiguousarray(inputs[name], np.float32)
            missing = value.shape()[0] - len(rows)
            value.update_inplace(np.concatenate((rows, np.repeat(rows[-1:], missing, axis=0))))
        self._session.run_with_iobinding(self._binding)
        return {name: np.array(value.numpy()) for name, value in self._made.items()}


def _buffer(node: _Node, device: str) -> Any:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(np.zeros(node.shape, np.float32), device, 0)


def _joined(arrays: Sequence[_Array]) -> _Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


@cache
def _preloaded() -> None:
    import onnxruntime

    # CUDA's and cuDNN's libraries from their packages, where the linker would not look.
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls(directory="")


def _session(network: bytes, batch: int, threads: int, device: str, recorded: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_free_dimension_override_by_name(_BATCH, batch)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        _preloaded()
        # A session for each batch size: none may take more than it needs.
        settings = {"arena_extend_strategy": "kSameAsRequested"}
        if recorded:
            settings["enable_cuda_graph"] = "1"
        providers.insert(0, (CUDA, settings))
    session = ort.InferenceSession(network, options, providers=providers, enable_fallback=0)
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise ProviderUnavailable("CUDA was asked for, but ONNX Runtime could not start it")
    return session
