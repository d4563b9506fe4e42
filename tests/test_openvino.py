"""OpenVINO in ONNX Runtime's place: the same numbers, whichever graph, batch and thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfic
from sfic import openvino_session, runtime
from sfic.codec import CROP_SIZE, Codec
from sfic.demo import demo_photograph
from sfic.detection import FaceDetector
from sfic.errors import BundleError, MissingExtra
from sfic.locations import models_dir
from sfic.onnx_outputs import keep_outputs
from sfic.openvino_session import OPENVINO, OpenVinoSession, has_bfloat16
from sfic.pictures import read_picture
from sfic.runtime import CPU, CUDA, choose_provider, make_session

pytest.importorskip("openvino")

GENERATOR = models_dir() / "generator_high.onnx"
# Every graph that a codec gives to OpenVINO, and an output of it.
GRAPHS = [
    ("analysis.onnx", "basic"),
    ("styles.onnx", "styles_enhanced"),
    ("spatial_analysis.onnx", "code"),
    ("correction.onnx", "picture"),
    ("generator_low.onnx", "features"),
    *(("generator_high.onnx", f"image_{size}") for size in (64, 128, 512, 1024)),
]


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_session, "has_bfloat16", lambda: False)


def network(name: str, output: str) -> Path | bytes:
    path = models_dir() / name
    return keep_outputs(path.read_bytes(), {output}, None) if path == GENERATOR else path


def inputs_of(session: Any, faces: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    given = {
        node.name: rng.normal(0, 0.5, [faces, *node.shape[1:]]).astype(np.float32)
        for node in session.get_inputs()
        if node.shape
    }
    if "gain" in given:
        given["gain"] = np.full_like(given["gain"], 3.0)
    return given | {node.name: np.array(0) for node in session.get_inputs() if not node.shape}


@pytest.mark.parametrize(("name", "output"), GRAPHS)
def test_computes_what_onnx_runtime_does(float32: None, name: str, output: str) -> None:
    graph = network(name, output)
    ours, theirs = OpenVinoSession(graph), make_session(graph)
    assert [n.name for n in ours.get_inputs()] == [n.name for n in theirs.get_inputs()]
    assert {n.name for n in ours.get_outputs()} == {n.name for n in theirs.get_outputs()}
    inputs = inputs_of(theirs, 1)
    own, expected = (session.run([output], inputs)[0] for session in (ours, theirs))
    assert own.shape == expected.shape
    # Fine channels leave out what is within a dead zone: a step there for a rounding.
    far = np.abs(own - expected) > 2e-3 * np.abs(expected).max()
    assert far.mean() < 1e-3


def test_transposed_convolutions_and_products_are_rewritten(float32: None) -> None:
    session = OpenVinoSession(network("generator_high.onnx", "image_1024"))
    (compiled,) = session._compiled.values()
    kinds = [
        node.get_rt_info()["layerType"].astype(str)
        for node in compiled._model.get_runtime_model().get_ordered_ops()
    ]
    assert "Deconvolution" not in kinds and "MatMul" not in kinds
    assert kinds.count("DepthToSpace") == 5  # to 64, 128, 256 and 512 pixels, and the picture


def test_takes_several_faces(float32: None) -> None:
    graph = network("generator_high.onnx", "image_64")
    ours = OpenVinoSession(graph)
    inputs = inputs_of(make_session(graph), 3)
    together = ours.run(["image_64"], inputs)[0]
    for i in range(3):
        one = {k: v[i : i + 1] if v.ndim else v for k, v in inputs.items()}
        assert np.allclose(ours.run(["image_64"], one)[0][0], together[i], atol=1e-4)


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU computes in float32")
def test_weights_take_two_bytes() -> None:
    path = models_dir() / "analysis.onnx"  # whose weights are float16, too
    (compiled,) = OpenVinoSession(path, 1)._compiled.values()
    assert openvino_session._exported(compiled._model).size < 1.1 * path.stat().st_size
    (exact,) = OpenVinoSession(path, 1, exact=True)._compiled.values()
    assert openvino_session._exported(exact._model).size > 1.8 * path.stat().st_size


def test_threads_share_a_session() -> None:
    graph = network("generator_high.onnx", "image_128")
    session = OpenVinoSession(graph, threads=1)
    many = [inputs_of(make_session(graph), 1, seed) for seed in range(8)]
    alone = [session.run(["image_128"], inputs)[0] for inputs in many]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda inputs: session.run(["image_128"], inputs)[0], many))
    for own, expected in zip(at_once, alone, strict=True):
        assert np.array_equal(own, expected)


def test_results_are_the_callers_own() -> None:
    """A request's memory is used again: what was returned must not change with it."""
    graph = network("generator_high.onnx", "image_64")
    session = OpenVinoSession(graph)
    first, second = (inputs_of(make_session(graph), 1, seed) for seed in (1, 2))
    kept = session.run(["image_64"], first)[0]
    before = kept.copy()
    session.run(["image_64"], second)
    assert np.array_equal(kept, before)


def test_no_input_is_left_out() -> None:
    """OpenVINO would compute with whatever its memory holds."""
    session = OpenVinoSession(models_dir() / "styles.onnx", 1)
    given = inputs_of(session, 1)
    del given["middle"]
    with pytest.raises(BundleError, match="middle"):
        session.run(["styles_enhanced"], given)


def test_an_input_goes_by_every_name_that_it_has() -> None:
    """A reshape that changes nothing is left out, and its input then has its name as well."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["a-crop", "shape"], ["/0/Reshape_output_0"]),
            helper.make_node("Relu", ["/0/Reshape_output_0"], ["y"]),
        ],
        "alias",
        [helper.make_tensor_value_info("a-crop", kind, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, ["N", 3, 8, 8])],
        [onnx.numpy_helper.from_array(np.array([-1, 3, 8, 8]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = OpenVinoSession(model.SerializeToString(), 1)
    crop = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    found = session.run(["y"], {"a-crop": crop})[0]
    np.testing.assert_allclose(found, np.maximum(crop, 0), rtol=0.01)


def test_landmarks_are_those_of_onnx_runtime() -> None:
    """Not in bfloat16: crops, and all that is coded, hang on them."""
    picture = read_picture(demo_photograph())
    ours, theirs = (FaceDetector(provider=name).detect(picture) for name in ("openvino", "cpu"))
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.landmarks, other.landmarks, atol=0.05)


def test_a_network_is_read_once_for_one_face(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    read = OpenVinoSession._read

    def counted(session: OpenVinoSession) -> Any:
        reads.append(session)
        return read(session)

    monkeypatch.setattr(OpenVinoSession, "_read", counted)
    monkeypatch.setenv("SFIC_COMPILED_DIR", "")
    session = OpenVinoSession(models_dir() / "styles.onnx")
    session.run(["styles_enhanced"], inputs_of(session, 1))
    assert len(reads) == 1
    session.run(["styles_enhanced"], inputs_of(session, 2))
    assert len(reads) == 2


@pytest.mark.parametrize(("part", "sizes"), [("encode", set()), ("decode", {"image_1024"})])
def test_what_is_warm_needs_no_loading(part: Any, sizes: set[str]) -> None:
    codec = Codec.load(provider="openvino", threads=1)
    codec.warm_up(part)
    loaded = {name for name, _ in codec._generator._sessions}
    assert loaded == sizes | {codec._generator._preview}


def test_faces_look_the_same() -> None:
    """One packet, decoded by both; and packets of both are of one quality."""
    by = {name: Codec.load(provider=name, threads=1) for name in ("cpu", "openvino")}
    assert by["openvino"].provider == OPENVINO
    picture = read_picture(demo_photograph())
    faces = {name: codec.encode_picture(picture)[0] for name, codec in by.items()}
    shown = {
        (coder, decoder): codec.decode(face, size=CROP_SIZE).astype(float)
        for coder, face in faces.items()
        for decoder, codec in by.items()
    }
    assert faces["openvino"].total_bytes == pytest.approx(faces["cpu"].total_bytes, rel=0.03)
    same = shown["cpu", "cpu"] - shown["cpu", "openvino"]
    assert 10 * np.log10(255**2 / np.square(same).mean()) > 36
    crossed = shown["openvino", "cpu"] - shown["cpu", "cpu"]
    assert 10 * np.log10(255**2 / np.square(crossed).mean()) > 28


class Core:
    def __init__(self, capabilities: list[str]) -> None:
        self.capabilities = capabilities

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self.capabilities


def test_auto_takes_it_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def auto(capabilities: list[str], *, gpu: bool = False) -> str:
        monkeypatch.setattr(openvino_session, "_core", lambda: Core(capabilities))
        monkeypatch.setattr(runtime, "gpu_starts", lambda: gpu)
        return choose_provider("auto")

    assert auto(["FP32", "BF16"]) == OPENVINO
    assert auto(["FP32", "INT8"]) == CPU
    assert auto(["FP32", "BF16"], gpu=True) == CUDA
    assert choose_provider("openvino") == OPENVINO and choose_provider("cpu") == CPU
    monkeypatch.setattr(openvino_session, "find_spec", lambda name: None)
    assert auto(["FP32", "BF16"]) == CPU


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    openvino_session._started.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    yield
    monkeypatch.undo()
    openvino_session._started.cache_clear()


def test_says_what_to_install(without_openvino: None) -> None:
    with pytest.raises(MissingExtra, match=r"sfic\[cpu\]"):
        runtime.make_session(GENERATOR, "openvino")


def test_a_broken_network_is_a_bundle_error(tmp_path: Path) -> None:
    broken = tmp_path / "network.onnx"
    broken.write_bytes(GENERATOR.read_bytes()[:5000])
    with pytest.raises(BundleError, match=r"network\.onnx"):
        OpenVinoSession(broken)
    with pytest.raises(BundleError, match="the network"):
        OpenVinoSession(b"no network")


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
def test_the_library_takes_it_by_itself() -> None:
    assert sfic.Codec.load(threads=1).provider == OPENVINO
