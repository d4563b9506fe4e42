"""Fine channels start as a block transform: what goes in comes out, up to what is left out."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from sfic.networks.codec import CodecShape, FaceCodec  # noqa: E402
from training.start_refinement import start, widened  # noqa: E402


def smooth_noise(n: int, side: int) -> torch.Tensor:
    """Pictures [n, 3, side, side] whose energy is at low frequencies, as that of faces is."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(n, 3, side // 4, side // 4, generator=generator)
    return 0.2 * torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")


@pytest.fixture(scope="module")
def codec() -> FaceCodec:
    codec = FaceCodec(CodecShape(hidden=32, fine_channels=24)).requires_grad_(False).eval()
    start(codec, smooth_noise(32, codec.shape.picture))
    return codec


def test_the_transform_is_undone_by_the_synthesis(codec: FaceCodec) -> None:
    shape = codec.shape
    rest = smooth_noise(4, shape.picture)
    # A new codec says nothing of the coarse part, and its network of the fine one next to nothing.
    fine = codec.spatial_refinement(rest, torch.zeros_like(rest))
    code = torch.nn.functional.pad(fine, (0, 0, 0, 0, shape.coarse_channels, 0))
    preview = torch.zeros(4, 3, shape.preview, shape.preview)
    mixed = torch.zeros(4, 96, shape.feature_size, shape.feature_size)
    picture = codec.spatial_synthesis.picture(mixed, code, preview)
    left = (picture - rest).square().mean() / rest.square().mean()
    assert left < 0.1
    assert fine.std(dim=(0, 2, 3)).allclose(torch.ones(shape.fine_channels), atol=0.35)


def test_fine_channels_have_equal_steps(codec: FaceCodec) -> None:
    # gain / scale is 1 / step: the same for all channels, as for an orthonormal transform.
    scale = codec.spatial_refinement.norm.running_var.sqrt()
    for t in (0.0, 1.0):
        gain = codec.gains["spatial"](torch.tensor([t]))[0, codec.shape.coarse_channels :]
        steps = scale / gain
        assert steps.allclose(steps[:1].expand_as(steps), rtol=1e-4)


def test_weights_of_a_narrower_codec_are_kept() -> None:
    small = FaceCodec(CodecShape(hidden=32, fine_channels=2)).state_dict()
    codec = FaceCodec(CodecShape(hidden=32, fine_channels=6))
    state = widened(small, codec)
    codec.load_state_dict(state)
    name = "spatial_synthesis.fine.weight"
    assert torch.equal(state[name][:, :2], small[name])
    assert torch.equal(state["spatial_base"][: len(small["spatial_base"])], small["spatial_base"])
