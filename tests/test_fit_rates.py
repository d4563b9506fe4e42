"""The highest rate ends where it is asked to."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from sfic.networks.codec import LAYERS, CodecShape, FaceCodec  # noqa: E402
from training.fit_rates import end_at, end_styles_at, share_for  # noqa: E402


def test_rates_are_read_up_to_a_share_of_the_highest() -> None:
    codec = FaceCodec(CodecShape(hidden=32, fine_channels=2)).requires_grad_(False)
    with torch.no_grad():
        codec.gains["spatial"].knots.copy_(torch.rand_like(codec.gains["spatial"].knots).cumsum(0))
    before = codec.gains["spatial"](torch.tensor([0.0, 0.4, 0.8]))
    end_at(codec, 0.8)
    after = codec.gains["spatial"](torch.tensor([0.0, 0.5, 1.0]))
    assert after[0].allclose(before[0])
    assert after[2].allclose(before[2])
    assert (after[1] > after[0]).all() and (after[1] < after[2]).all()


def test_rates_go_on_below_the_lowest() -> None:
    codec = FaceCodec(CodecShape(hidden=32, fine_channels=2)).requires_grad_(False)
    knots = codec.gains["spatial"].knots
    with torch.no_grad():
        knots.copy_(torch.rand_like(knots).cumsum(0))
    before = codec.gains["spatial"](torch.tensor([0.0, 0.25, 0.75])).log()
    end_at(codec, 0.75, -0.25)
    after = codec.gains["spatial"](torch.tensor([0.0, 0.25, 1.0])).log()
    torch.testing.assert_close(after[0], 2 * before[0] - before[1])
    torch.testing.assert_close(after[1:], before[[0, 2]])


@pytest.mark.parametrize(("wanted", "share"), [(500.0, 0.5), (2000.0, 1.0), (900.0, 0.9)])
def test_the_share_is_found(wanted: float, share: float) -> None:
    assert share_for(lambda x: 1000 * x, wanted) == pytest.approx(share, abs=0.01)


def test_styles_at_the_highest_rate_are_those_of_a_lower_one() -> None:
    torch.manual_seed(1)
    codec = FaceCodec(CodecShape(hidden=32)).requires_grad_(False).eval()
    for name, parameter in codec.named_parameters():
        if name.startswith(("gains", "rates")):
            parameter.add_(0.3 * torch.randn_like(parameter))
    share = 0.25  # a knot, so that what was linear between knots stays so
    z = {name: torch.randn(2, getattr(codec.shape, name)) for name in LAYERS}
    before = codec.code_styles(z, torch.tensor([0.0, share]), noise=False)
    end_styles_at(codec, share)
    after = codec.code_styles(z, torch.tensor([0.0, 1.0]), noise=False)
    for name in LAYERS:
        torch.testing.assert_close(after.latents[name], before.latents[name])
        torch.testing.assert_close(after.bits[name], before.bits[name])
