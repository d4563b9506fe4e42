"""Sessions of networks: what they run on, and with how many threads.

What belongs here: creating sessions and naming what is there. What a network computes belongs to
the module that runs it; OpenVINO, which stands in for ONNX Runtime, is `sfic.openvino_session`,
and how a GPU is used `sfic.bound_session`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sfic.bound_session import CUDA, BoundSession, gpu_starts
from sfic.errors import BundleError, MissingExtra, ProviderUnavailable
from sfic.openvino_session import OPENVINO, OpenVinoSession, has_bfloat16

__all__ = ["CPU", "CUDA", "OPENVINO", "PROVIDERS", "choose_provider", "make_session"]

CPU: Final = "CPUExecutionProvider"
PROVIDERS: Final = ("auto", "cpu", "openvino", "cuda")


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra(
            "onnxruntime is not installed: pip install 'sfic[cpu]' (or 'sfic[gpu]')"
        ) from error
    return onnxruntime


def choose_provider(wanted: str) -> str:
    """The execution provider for "auto", "cpu", "openvino" or "cuda".

    "cpu" is ONNX Runtime's. "auto" takes the first of a GPU that starts, OpenVINO on a CPU with
    bfloat16 (on others it is no faster), and ONNX Runtime. Raises ProviderUnavailable when "cuda"
    is asked for and is not there.
    """
    if wanted not in PROVIDERS:
        raise ProviderUnavailable(f"unknown provider {wanted!r}: one of {', '.join(PROVIDERS)}")
    if wanted == "openvino":
        return OPENVINO
    ort = _onnxruntime()
    if wanted == "cuda" and CUDA not in ort.get_available_providers():
        raise ProviderUnavailable(
            "CUDA was asked for, but this ONNX Runtime has no CUDA provider: "
            "install the extra 'gpu' in place of 'cpu'"
        )
    if wanted == "cuda" or (wanted == "auto" and gpu_starts()):
        return CUDA
    return OPENVINO if wanted == "auto" and has_bfloat16() else CPU


def make_session(
    network: Path | bytes,
    provider: str = "cpu",
    threads: int = 0,
    *,
    arena: bool = False,
    exact: bool = False,
) -> Any:
    """A session of a network, a file or its bytes: ONNX Runtime's, or one that looks like it.

    `provider`: see `choose_provider`. `threads`: threads of one run, 0: all cores. `arena`: keep
    the memory of a run for the next, which pays where it is tens of megabytes a run. `exact`: in
    float32, whatever the CPU has. On a GPU it computes in float16 (`sfic.bound_session`). Raises
    BundleError when the file cannot be loaded, ProviderUnavailable when the GPU was asked for and
    the session does not get it.
    """
    chosen = choose_provider(provider)
    if chosen == CUDA:
        return BoundSession(network, threads)
    if chosen == OPENVINO:
        return OpenVinoSession(network, threads, exact=exact)
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    # Spinning threads would take the cores from the other services of a small edge box.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        source = network if isinstance(network, bytes) else str(network)
        return ort.InferenceSession(source, options, providers=[CPU])
    except Exception as error:
        name = "the network" if isinstance(network, bytes) else network
        raise BundleError(f"cannot load {name}: {error}") from error
