"""The highest rate ends where it is asked to."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from sfic.networks.codec import CodecShape, FaceCodec  # noqa: E402
from training.fit_rates import end_at, share_for  # noqa: E402


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


@pytest.mark.parametrize(("wanted", "share"), [(500.0, 0.5), (2000.0, 1.0), (900.0, 0.9)])
def test_the_share_is_found(wanted: float, share: float) -> None:
    assert share_for(lambda x: 1000 * x, wanted) == pytest.approx(share, abs=0.01)
