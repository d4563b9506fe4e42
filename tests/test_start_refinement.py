"""Fine channels start as a block transform: what goes in comes out, up to what is left out."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from sfic.networks.codec import (  # noqa: E402
    DEAD_ZONE,
    KNOTS,
    CodecShape,
    FaceCodec,
    at_rate,
    quantise,
)
from training.codec_checkpoint import widened  # noqa: E402
from training.start_refinement import COARSE, start, start_coarse  # noqa: E402


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
    # A new codec says nothing of the coarse part.
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
    cells = small["spatial_laws"].shape[1]
    assert torch.equal(state["spatial_laws"][:, :cells], small["spatial_laws"])


def test_coarse_channels_stop_where_more_of_their_bits_bring_nothing() -> None:
    codec = FaceCodec(CodecShape(hidden=32, fine_channels=2)).requires_grad_(False)
    before = codec.gains["spatial"](torch.tensor(COARSE))
    start_coarse(codec)
    after = codec.gains["spatial"](torch.linspace(0, 1, KNOTS))
    coarse = codec.shape.coarse_channels
    assert after[:, :coarse].allclose(before[:, :coarse])
    assert after[-1, coarse:].gt(before[-1, coarse:]).all()  # fine channels keep theirs


@pytest.mark.parametrize("t", [0.0, 0.1, 0.25, 0.6, 1.0])
def test_values_between_knots_are_linear(t: float) -> None:
    knots = torch.tensor([[0.0, 5.0], [4.0, 5.0], [6.0, 1.0], [6.0, 1.0], [7.0, 0.0]])
    want = torch.from_numpy(
        np.stack([np.interp(t, np.linspace(0, 1, 5), column) for column in knots.T.numpy()])
    )
    assert at_rate(knots, torch.tensor([t]))[0].allclose(want.float(), atol=1e-6)


def test_fine_symbols_of_the_dead_zone_are_zero() -> None:
    codec = FaceCodec(CodecShape(hidden=32)).requires_grad_(False).eval()
    start(codec, smooth_noise(32, codec.shape.picture))
    shape = codec.shape
    crop, preview = smooth_noise(2, shape.picture), torch.zeros(2, 3, shape.preview, shape.preview)
    features = torch.zeros(2, shape.feature_channels, shape.feature_size, shape.feature_size)
    gain = codec.gains["spatial"](torch.tensor([0.5, 1.0]))[:, :, None, None]
    coarse = shape.coarse_channels
    shrunk = codec.spatial_latents(crop, features, preview, gain)[:, coarse:] * gain[:, coarse:]
    known = codec.spatial_analysis(crop, preview)
    known = quantise(known * gain[:, :coarse], noise=False) / gain[:, :coarse]
    code = torch.nn.functional.pad(known, (0, 0, 0, 0, 0, shape.fine_channels))
    synthesis = codec.spatial_synthesis
    shown, _ = synthesis.draft(synthesis.mixed(code, features), code, preview)
    plain = codec.spatial_refinement(crop, shown) * gain[:, coarse:]
    assert plain.abs().max() > 1.0
    assert torch.equal(shrunk.round(), plain.sign() * (plain.abs() + 0.5 - DEAD_ZONE).floor())


def test_a_symbol_that_rounds_to_zero_says_that_it_might_not() -> None:
    codec = FaceCodec(CodecShape(hidden=32)).eval()
    with torch.no_grad():
        codec.gains["spatial"].knots.fill_(-3.0)
    shape = codec.shape
    features = torch.zeros(1, shape.feature_channels, shape.feature_size, shape.feature_size)
    crop, preview = smooth_noise(1, shape.picture), torch.zeros(1, 3, shape.preview, shape.preview)
    code, bits = codec.code_spatial(crop, features, preview, torch.tensor([0.5]), noise=False)
    assert not code.any()
    with torch.no_grad():
        _, rounded = codec.code_spatial(crop, features, preview, torch.tensor([0.5]), noise=False)
    assert bits.allclose(rounded)
    bits.sum().backward()
    gradient = codec.gains["spatial"].knots.grad
    assert gradient is not None
    # Beside the rounded value, whose gradient is that of the laws alone.
    assert gradient[2].abs().sum() > 0
    assert not gradient[[0, 4]].any()
