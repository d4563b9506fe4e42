"""Efforts 2 and 3: the served graphs in torch, and what their gradients gain."""

from __future__ import annotations

import numpy as np
import pytest

import sfic
from sfic.alignment import align
from sfic.codec import _Face
from sfic.detection import FaceDetector
from sfic.layers import LAYERS
from sfic.locations import demo_photograph, models_dir
from sfic.pictures import read_picture
from sfic.runtime import make_session

torch = pytest.importorskip("torch", reason="efforts 2 and 3 need torch")
pytest.importorskip("onnx", reason="efforts 2 and 3 need onnx")

from sfic.networks.onnx_graph import OnnxGraph  # noqa: E402


@pytest.mark.parametrize(
    "name", ["analysis", "styles", "correction", "heads", "generator_low", "spatial_analysis"]
)
def test_a_graph_in_torch_equals_onnx_runtime(name: str) -> None:
    path = models_dir() / f"{name}.onnx"
    session, graph = make_session(path), OnnxGraph(path)
    rng = np.random.default_rng(1)
    inputs = {
        i.name: rng.normal(
            0, 0.5, [1 if isinstance(size, str) else size for size in i.shape]
        ).astype(np.float32)
        for i in session.get_inputs()
    }
    wanted = [output.name for output in session.get_outputs()]
    ours = graph({k: torch.from_numpy(v) for k, v in inputs.items()}, wanted)
    for have, want in zip(ours, session.run(wanted, inputs), strict=True):
        np.testing.assert_allclose(have.numpy(), want, atol=2e-4)


@pytest.fixture(scope="module")
def face() -> _Face:
    codec = sfic.Codec.load(provider="cpu")
    picture = read_picture(demo_photograph())
    crop, _ = align(picture, FaceDetector().detect(picture)[0], size=256)
    return _Face(codec, crop, effort=2, layers=LAYERS)


def test_steps_without_a_price_on_bits_bring_the_picture_nearer(face: _Face) -> None:
    start, gains = face._one_pass_all(7), face._gains(7)
    refiner = face._codec._refiner
    better = refiner.refine(face._small, start, gains, face._laws(7), weight=0.0, steps=12)
    before, after = (
        refiner.distortion(
            face._small, {k: np.rint(v).astype(np.int32) for k, v in values.items()}, gains
        )
        for values in (start, better)
    )
    assert after < before


def test_effort_2_is_never_worse_than_effort_1_by_its_own_objective(face: _Face) -> None:
    codec = face._codec
    costs = []
    for effort in (1, 2):
        coded = codec.encode(face._crop, rate=7, effort=effort)
        symbols, rate = codec.decode_symbols(coded, "enhanced")
        costs.append(face.cost(coded, symbols, rate))
    assert costs[1] <= costs[0]
