"""Efforts 2 and 3: the served graphs in torch, and what their gradients gain."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

import sfic
from sfic.alignment import align
from sfic.detection import FaceDetector
from sfic.locations import models_dir
from sfic.runtime import make_session

torch = pytest.importorskip("torch", reason="efforts 2 and 3 need torch")
pytest.importorskip("onnx", reason="efforts 2 and 3 need onnx")

from sfic.networks.onnx_graph import OnnxGraph  # noqa: E402

Rgb = npt.NDArray[np.uint8]


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


def test_effort_2_brings_the_picture_nearer_at_about_the_same_bytes(astronaut: Rgb) -> None:
    codec = sfic.Codec.load(provider="cpu")
    crop, _ = align(astronaut, FaceDetector().detect(astronaut)[0], size=256)
    small = cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float64)
    error, size = {}, {}
    for effort in (1, 2):
        face = codec.encode(crop, rate=7, effort=effort)
        picture = codec.decode(face, size=256)
        have = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
        error[effort] = float(np.abs(have - small).mean())
        size[effort] = face.total_bytes
    assert error[2] < error[1], error
    assert size[2] < 1.05 * size[1], size
