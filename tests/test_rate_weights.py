"""The price of a bit follows the byte budget of each rate."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from training.train_codec import RateWeights, target_bits  # noqa: E402


def test_budgets_run_log_linearly_from_the_lowest_to_the_highest() -> None:
    low, middle, high = target_bits("spatial", torch.tensor([0.0, 0.5, 1.0])).tolist()
    assert middle**2 == pytest.approx(low * high, rel=1e-4)


def test_bits_over_budget_get_dearer_at_their_rates_alone() -> None:
    weights = RateWeights(start=0.1, step=0.1)
    before = weights.weight("spatial", torch.linspace(0, 1, 5))
    t = torch.tensor([0.45, 0.55])
    for _ in range(5):
        weights.update("spatial", t, 2 * target_bits("spatial", t))
    ratio = weights.weight("spatial", torch.linspace(0, 1, 5)) / before
    assert ratio[2] > ratio[1] > 1
    assert ratio[[0, 4]].tolist() == [1.0, 1.0]


def test_bits_on_budget_keep_their_price() -> None:
    weights = RateWeights(start=0.1, step=0.1)
    before, t = weights.weight("basic", torch.linspace(0, 1, 5)), torch.rand(16)
    weights.update("basic", t, target_bits("basic", t))
    weights.update("basic", t[:0], t[:0])
    assert weights.weight("basic", torch.linspace(0, 1, 5)).allclose(before)
