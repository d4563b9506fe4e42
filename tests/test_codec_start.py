"""Going on from a bundle: the torch codec that is read back does what the graphs do."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from sfic.bundle import ModelBundle  # noqa: E402
from sfic.networks.codec import FaceCodec  # noqa: E402
from sfic.runtime import make_session  # noqa: E402
from training.codec_start import start_from_bundle  # noqa: E402

PARTS = (
    "whitening", "trunk", "to_latents", "to_identity", "from_basic", "from_middle", "from_enhanced",
    "spatial_analysis", "spatial_refinement", "spatial_synthesis", "gains",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return ModelBundle.load()


@pytest.fixture(scope="module")
def codec(bundle: ModelBundle) -> FaceCodec:
    codec = FaceCodec()
    start_from_bundle(codec, bundle.directory, PARTS)
    return codec.requires_grad_(False).eval()


def run(bundle: ModelBundle, graph: str, **inputs: np.ndarray) -> list[np.ndarray]:
    session = make_session(bundle.path(graph), "cpu", 1)
    return session.run(None, inputs)


def test_analysis(bundle: ModelBundle, codec: FaceCodec) -> None:
    side = bundle.meta["input"]
    crop = np.random.default_rng(1).uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    basic, middle, enhanced = run(bundle, "analysis.onnx", crop=crop)
    small = torch.nn.functional.avg_pool2d(torch.from_numpy(crop), side // 128)
    own = codec.analyse(small, torch.zeros(1, codec.shape.identity_input))
    ours = codec.shape.basic - codec.shape.identity
    np.testing.assert_allclose(own["basic"][:, :ours].numpy(), basic[:, :ours], atol=2e-3)
    np.testing.assert_allclose(own["middle"].numpy(), middle, atol=2e-3)
    np.testing.assert_allclose(own["enhanced"].numpy(), enhanced, atol=2e-3)


def test_spatial_code(bundle: ModelBundle, codec: FaceCodec) -> None:
    rng = np.random.default_rng(2)
    crop = rng.uniform(-1, 1, (1, 3, 128, 128)).astype(np.float32)
    preview = rng.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    features = rng.normal(0, 1, (1, 512, 32, 32)).astype(np.float32)
    gain = np.full((1, codec.shape.spatial_channels, 1, 1), 0.01, np.float32)  # all rounds to 0
    inputs = {"crop": crop, "features": features, "preview": preview, "gain": gain}
    (code,) = run(bundle, "spatial_analysis.onnx", **inputs)
    own = codec.spatial_latents(*map(torch.from_numpy, inputs.values()))
    np.testing.assert_allclose(own.numpy(), code, atol=2e-3 * np.abs(code).max())
    made = run(bundle, "correction.onnx", code=code, features=features, preview=preview)
    given = (torch.from_numpy(x) for x in (code, features, preview))
    for have, want in zip(codec.spatial_synthesis(*given), made, strict=True):
        np.testing.assert_allclose(have.numpy(), want, atol=2e-3 * np.abs(want).max())


def test_gains(bundle: ModelBundle, codec: FaceCodec) -> None:
    with np.load(bundle.path("entropy.npz")) as file:
        for name, parts in (("basic", ("basic",)), ("spatial", ("coarse", "fine"))):
            for t, row in ((0.0, 0), (1.0, -1)):
                own = codec.gains[name](torch.tensor([t]))[0].numpy()
                kept = np.concatenate([file[f"gain.{part}"][row] for part in parts])
                np.testing.assert_allclose(own, kept, rtol=1e-5)


def test_another_architecture_is_refused(bundle: ModelBundle) -> None:
    codec = FaceCodec()
    codec.trunk.backbone.blocks = codec.trunk.backbone.blocks[:-1]
    with pytest.raises(ValueError, match="convolution"):
        start_from_bundle(codec, bundle.directory, ("trunk",))
