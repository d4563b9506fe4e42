"""The way to a GPU, on the CPU: buffers, batches, float16, and what happens where none is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sfic.runtime
from sfic import bound_session
from sfic.bound_session import BATCHES, BoundSession, gpu_starts, in_float16
from sfic.errors import BundleError, InvalidInput, MissingExtra, ProviderUnavailable
from sfic.generator import OnnxGenerator
from sfic.locations import models_dir
from sfic.onnx_outputs import keep_outputs
from sfic.runtime import CPU, CUDA, choose_provider, make_session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FloatArray = NDArray[np.float32]
SIZES = (128, 512, 1024)
LOW, HIGH = models_dir() / "generator_low.onnx", models_dir() / "generator_high.onnx"


def styles_of(count: int, seed: int = 3) -> FloatArray:
    """Random styles of the prior, from its own mapping's mean and spread."""
    rng = np.random.default_rng(seed)
    network = make_session(models_dir() / "styles.onnx", "cpu", 1)
    given = {
        node.name: rng.normal(0, 1, (count, node.shape[1])).astype(np.float32)
        for node in network.get_inputs()
    }
    styles: FloatArray = network.run(["styles_enhanced"], given)[0]
    return styles


@pytest.fixture(scope="module")
def plain() -> OnnxGenerator:
    generator = OnnxGenerator(LOW, HIGH, provider="cpu", threads=1)
    for size in SIZES:  # now: `bound` changes what later sessions are
        generator.load(size)
    return generator


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Iterator[OnnxGenerator]:
    """The generator as it is on a GPU, but for the device."""
    monkeypatch.setattr(sfic.runtime, "choose_provider", lambda wanted: CUDA)
    monkeypatch.setattr(sfic.runtime, "BoundSession", partial(BoundSession, device="cpu"))
    yield OnnxGenerator(LOW, HIGH, provider="cuda", threads=1)


def decibels(one: FloatArray, other: FloatArray) -> float:
    """Of images in [-1, 1]."""
    return float(10 * np.log10(4 / np.mean((one - other) ** 2)))


def test_pictures_are_those_of_a_plain_session(bound: OnnxGenerator, plain: OnnxGenerator) -> None:
    styles = styles_of(3)
    assert bound.provider == "bound CPU"
    features, wanted = bound.features(styles), plain.features(styles)
    assert features.dtype == np.float32 and features.shape == wanted.shape
    assert np.abs(features - wanted).max() < 2e-3 * np.abs(wanted).max()
    assert decibels(bound.preview(styles, wanted), plain.preview(styles, wanted)) > 60
    for size in SIZES:
        assert (
            decibels(
                bound.image(styles[:1], wanted[:1], size), plain.image(styles[:1], wanted[:1], size)
            )
            > 60
        ), size


@pytest.mark.parametrize("count", [1, 3, 16, 17])
def test_faces_of_a_batch_do_not_touch_each_other(count: int) -> None:
    """Padded to the next batch size; more than the largest go in several."""
    session = BoundSession(LOW, 1, device="cpu")
    styles = styles_of(count)
    together = session.run(["features"], {"styles": styles})[0]
    assert len(together) == count
    alone = session.run(["features"], {"styles": styles[-1:]})[0]
    assert np.abs(together[-1:] - alone).max() < 2e-3 * np.abs(alone).max()
    assert set(session._plans) <= set(BATCHES)


def test_results_are_the_callers_own() -> None:
    session = BoundSession(LOW, 1, device="cpu")
    first = session.run(["features"], {"styles": styles_of(1, 1)})[0]
    kept = first.copy()
    second = session.run(["features"], {"styles": styles_of(1, 2)})[0]
    assert np.array_equal(first, kept) and not np.array_equal(first, second)


def busy(monkeypatch: pytest.MonkeyPatch, session: BoundSession, calls: int) -> list[int]:
    """Hold the device until so many calls wait; returns the faces of each run, as they come."""
    runs: list[int] = []
    real = BoundSession._run

    def counted(self: BoundSession, inputs: Any) -> Any:
        runs.append(len(inputs["styles"]))
        return real(self, inputs)

    def hold() -> None:
        while len(session._waiting) < calls:
            sleep(0.002)

    monkeypatch.setattr(BoundSession, "_run", counted)
    bound_session._device_thread().submit(hold)
    return runs


def test_who_waits_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight callers at once: one run, and each gets its own faces."""
    session = BoundSession(LOW, 1, device="cpu")
    styles = styles_of(8)
    wanted = session.run(["features"], {"styles": styles})[0]
    runs = busy(monkeypatch, session, 8)
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(
                lambda i: session.run(["features"], {"styles": styles[i : i + 1]})[0], range(8)
            )
        )
    assert runs == [8] and not session._waiting
    for i, features in enumerate(found):
        assert np.abs(features - wanted[i : i + 1]).max() < 2e-3 * np.abs(wanted).max()


def test_a_batch_that_fails_is_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the device has no room for it: no picture is lost, and no such batch made again."""
    session = BoundSession(LOW, 1, device="cpu")
    styles = styles_of(4)
    real = BoundSession._run

    def full(self: BoundSession, inputs: Any) -> Any:
        if len(inputs["styles"]) > 1:
            raise RuntimeError("out of memory")
        return real(self, inputs)

    runs = busy(monkeypatch, session, 4)
    monkeypatch.setattr(BoundSession, "_run", full)
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda i: session.run(["features"], {"styles": styles[i : i + 1]})[0], range(4)
            )
        )
    assert [x.shape[0] for x in found] == [1] * 4 and not session._waiting and not runs
    assert session._most < 4


def test_all_that_touches_the_device_is_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    real = bound_session._Plan.run

    def told(self: Any, inputs: Any) -> Any:
        threads.add(threading.get_ident())
        return real(self, inputs)

    monkeypatch.setattr(bound_session._Plan, "run", told)
    sessions = [BoundSession(LOW, 1, device="cpu") for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        for i in range(8):
            pool.submit(sessions[i % 2].run, ["features"], {"styles": styles_of(1)})
    assert len(threads) == 1 and threading.get_ident() not in threads


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"styles": np.zeros((1, 3, 512), np.float32)},
        {"styles": np.zeros((1, 512, 16), np.float32)},
        {"styles": np.zeros((0, 16, 512), np.float32)},
        {"others": np.zeros((1, 16, 512), np.float32)},
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, FloatArray]) -> None:
    session = BoundSession(LOW, 1, device="cpu")
    with pytest.raises(InvalidInput):
        session.run(["features"], given)
    assert session.run(["features"], {"styles": styles_of(1)})[0].shape[0] == 1


def test_inputs_have_to_be_of_as_many_faces() -> None:
    network = keep_outputs(HIGH.read_bytes(), {"image_128"})
    session = BoundSession(network, 1, device="cpu")
    shapes = {node.name: node.shape[1:] for node in session.get_inputs()}
    given = {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
    assert session.run(["image_128"], given)[0].shape == (1, 3, 128, 128)
    with pytest.raises(InvalidInput):
        session.run(["image_128"], given | {"styles": np.zeros((2, 16, 512), np.float32)})


def as_a_gpu_rounds(network: bytes) -> bytes:
    """The network with each node's results rounded to float16, as its arithmetic is on a GPU."""
    model = onnx.load_model_from_string(network)
    model = onnx.shape_inference.infer_shapes(model)
    kinds = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
    kinds |= {info.name: info.type.tensor_type.elem_type for info in model.graph.output}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        for i, name in enumerate(list(node.output)):
            if kinds.get(name) == single and node.op_type != "Constant":
                node.output[i] = f"{name}/exact"
                make = onnx.helper.make_node
                nodes.append(make("Cast", [node.output[i]], [f"{name}/half"], to=half))
                nodes.append(make("Cast", [f"{name}/half"], [name], to=single))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    rounded: bytes = model.SerializeToString()
    return rounded


def test_float16_is_precise_enough(plain: OnnxGenerator) -> None:
    """The CPU computes in float32 what is float16 on a GPU: so each result is rounded here.

    Rounding a picture to 8 bits costs more: 59 dB.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1

    def rounded(network: bytes, given: dict[str, Any]) -> FloatArray:
        session = onnxruntime.InferenceSession(as_a_gpu_rounds(network), options, providers=[CPU])
        made: FloatArray = session.run(None, given)[0]
        return made

    styles = styles_of(1)
    features = rounded(LOW.read_bytes(), {"styles": styles})
    network = keep_outputs(HIGH.read_bytes(), {"image_1024"})
    image = rounded(network, {"styles": styles, "features": features, "row": np.array(0)})
    wanted = plain.image(styles, plain.features(styles), 1024)
    assert np.isfinite(image).all()
    assert decibels(image, wanted) > 59


@pytest.mark.parametrize("output", ["image_1024", "image_128"])
def test_nothing_is_left_to_compute_from_shapes(output: str, tmp_path: Path) -> None:
    """So that all of a run can be recorded as one CUDA graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("N", 4)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    network = in_float16(keep_outputs(HIGH.read_bytes(), {output}))
    session = onnxruntime.InferenceSession(network, options, providers=[CPU])
    assert [tuple(node.shape) for node in session.get_outputs()][0][0] == 4
    assert "row" not in [node.name for node in session.get_inputs()]
    nodes = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert not nodes & {"Shape", "Range", "NonZero", "ConstantOfShape", "If", "Loop"}


def test_a_gpu_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for, it is an error; else the next provider takes its place, and that is said once."""
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU's ONNX Runtime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    gpu_starts.cache_clear()
    try:
        with pytest.raises(ProviderUnavailable):
            make_session(LOW, "cuda", 1)
        assert make_session(LOW, "auto", 1).get_providers()[0] != CUDA
        assert choose_provider("auto") != CUDA
        assert capsys.readouterr().out.count("no GPU") == 1
    finally:
        gpu_starts.cache_clear()


def test_a_file_that_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        BoundSession(tmp_path / "missing.onnx", device="cpu")
    with pytest.raises(BundleError):
        BoundSession(b"not an ONNX file at all", device="cpu")


def test_without_onnx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match="gpu"):
        in_float16(b"")
