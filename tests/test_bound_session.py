"""The way to a GPU, on the CPU: buffers, batches, float16, and what happens where none is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sfic.runtime
from sfic.errors import BundleError, MissingExtra, ProviderUnavailable
from sfic.generator import OnnxGenerator
from sfic.locations import models_dir
from sfic.onnx_outputs import keep_outputs
from sfic.runtime import CPU, CUDA, make_session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from sfic.bound_session import BATCHES, BoundSession, in_float16  # noqa: E402

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
    assert {batch for batch, _ in session._plans} <= set(BATCHES)


def test_results_are_the_callers_own() -> None:
    session = BoundSession(LOW, 1, device="cpu")
    first = session.run(["features"], {"styles": styles_of(1, 1)})[0]
    kept = first.copy()
    second = session.run(["features"], {"styles": styles_of(1, 2)})[0]
    assert np.array_equal(first, kept) and not np.array_equal(first, second)


def test_who_waits_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight callers at once: each gets its own faces, in far fewer runs than eight."""
    session = BoundSession(LOW, 1, device="cpu")
    runs: list[int] = []
    real = BoundSession._run

    def counted(self: BoundSession, outputs: Any, inputs: Any) -> Any:
        runs.append(len(inputs["styles"]))
        return real(self, outputs, inputs)

    monkeypatch.setattr(BoundSession, "_run", counted)
    styles = styles_of(8)
    wanted = session.run(["features"], {"styles": styles})[0]
    runs.clear()
    barrier = Barrier(8)

    def ask(i: int) -> FloatArray:
        barrier.wait()
        found: FloatArray = session.run(["features"], {"styles": styles[i : i + 1]})[0]
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert sum(runs) == 8 and len(runs) < 8
    for i, features in enumerate(found):
        assert np.abs(features - wanted[i : i + 1]).max() < 2e-3 * np.abs(wanted).max()


def test_an_error_is_that_of_the_caller_alone_and_the_session_goes_on() -> None:
    session = BoundSession(LOW, 1, device="cpu")
    with pytest.raises(Exception, match="(?i)dimension|shape"):
        session.run(["features"], {"styles": np.zeros((1, 3, 512), np.float32)})
    assert session.run(["features"], {"styles": styles_of(1)})[0].shape[0] == 1


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


def test_a_gpu_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, it is an error; else the next provider takes its place, and that is said."""
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU's ONNX Runtime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with pytest.raises(ProviderUnavailable):
        make_session(LOW, "cuda", 1)
    said = io.StringIO()
    with redirect_stdout(said):
        session = make_session(LOW, "auto", 1)
    assert session.get_providers()[0] != CUDA
    assert "no GPU" in said.getvalue()


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
