"""Results of the heads: reading them, and what a similarity means."""

from __future__ import annotations

import numpy as np
import pytest

from sfic.analysis import EXPRESSIONS, PARSING_CLASSES, PARSING_SIZE, SamePerson, read_heads

N = 3


def outputs(**changed: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    embedding = rng.normal(size=(N, 8))
    return {
        "embedding": embedding / np.linalg.norm(embedding, axis=1, keepdims=True),
        "identity_error": np.full(N, -2.0),
        "age": np.tile([0.6, -3.0], (N, 1)),
        "gender": np.array([-4.0, 0.0, 4.0]),
        "smile": np.zeros(N),
        "pose": np.tile([1.0, -0.5, 0.0, -3.0], (N, 1)),
        "landmarks": np.full((N, 68, 2), 0.5),
        "landmarks_error": np.full(N, -5.0),
        "score": np.zeros(N),
        "expression": np.eye(N, len(EXPRESSIONS)) * 5,
        "glasses": np.array([5.0, 0.0, -5.0]),
        "eyes_open": np.full(N, 2.0),
        "mouth_open": np.full(N, -2.0),
        "facial_hair": np.array([4.0, 0.0, -4.0]),
        "parsing": np.full((N, PARSING_SIZE, PARSING_SIZE), 1, np.uint8),
    } | changed


def test_units_and_confidences() -> None:
    first, second, third = read_heads(outputs())
    assert first.age.value == pytest.approx(30) and 0 < first.age.confidence < 1
    assert (first.pose.yaw, first.pose.pitch) == (30.0, -15.0)
    assert first.gender.value < 0.05 and third.gender.value > 0.95
    assert second.gender.confidence == 0.0
    assert first.glasses.value > 0.99 and second.glasses.confidence == 0.0
    assert first.eyes_open.value > 0.8 > 0.2 > first.mouth_open.value
    assert first.facial_hair.value > 0.95 and second.facial_hair.confidence == 0.0
    assert first.parsing.dtype == np.uint8 and first.parsing.max() < len(PARSING_CLASSES)


def test_areas_are_parts_of_the_crop() -> None:
    half = np.full((N, PARSING_SIZE, PARSING_SIZE), PARSING_CLASSES.index("hair"), np.uint8)
    half[:, : PARSING_SIZE // 2] = PARSING_CLASSES.index("skin")
    areas = dict(zip(PARSING_CLASSES, read_heads(outputs(parsing=half))[0].areas, strict=True))
    assert (areas["hair"], areas["skin"]) == (0.5, 0.5) and sum(areas.values()) == 1.0


def test_expression_is_the_likeliest() -> None:
    found = read_heads(outputs())
    assert [r.expression.name for r in found] == list(EXPRESSIONS[:N])
    for result in found:
        assert sum(result.expression.probabilities.values()) == pytest.approx(1)
        assert 0.9 < result.expression.confidence < 1
    unsure = read_heads(outputs(expression=np.zeros((N, len(EXPRESSIONS)))))[0]
    assert unsure.expression.confidence == pytest.approx(0)


def test_far_logits_do_not_overflow() -> None:
    result = read_heads(outputs(glasses=np.full(N, -1e6), score=np.full(N, 1e6)))[0]
    assert result.glasses.value == pytest.approx(0) and result.face_score.value == pytest.approx(1)


def test_same_person() -> None:
    means = SamePerson(10.0, -4.0, ((0.0, 0.5, 0.0), (0.4, 0.1, 0.1), (0.8, 0.0, 0.6)))
    assert means.probability(0.4) == pytest.approx(0.5)
    assert means.probability(0.9) > 0.99 > 0.05 > means.probability(0.0)
    assert means.even == pytest.approx(0.4)
    assert means.errors(0.2) == pytest.approx((0.3, 0.05))
    assert means.errors(-1.0) == (0.5, 0.0) and means.errors(1.0) == (0.0, 0.6)


def test_calibration_finds_the_law() -> None:
    pytest.importorskip("torch")
    from training.calibrate import THRESHOLDS, error_rates, fit_logistic, strangers, worth_of_scores

    rng = np.random.default_rng(3)
    scores = rng.uniform(-0.2, 1.0, 20_000)
    same = rng.random(20_000) < 1 / (1 + np.exp(-(12 * scores - 5)))
    # Both kinds count the same, whatever their numbers: the odds are those of even numbers.
    shift = np.log((~same).sum() / same.sum())
    scale, offset = fit_logistic(scores, same)
    assert scale == pytest.approx(12, rel=0.1)
    assert offset == pytest.approx(-5 + shift, abs=0.4)
    rates = np.array(error_rates(scores[same], scores[~same]))
    assert np.array_equal(rates[:, 0], THRESHOLDS)
    assert (np.diff(rates[:, 1]) <= 0).all() and (np.diff(rates[:, 2]) >= 0).all()
    assert rates[0, 1] == 1.0 and rates[0, 2] == 0.0
    # Two pictures of one person are no strangers, whatever their cosine.
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    assert strangers(vectors, ["ann", "ann", "bea"]).tolist() == [0.6, 0.6]
    worth = worth_of_scores(np.array([0.01, 0.3, 0.4, 1.0]), np.array([False, False, True, True]))
    assert worth == [[0.0, 0.05, 1, 0.0], [0.25, 0.5, 2, 0.5], [0.75, 1.0, 1, 1.0]]
    # Without the evening out, the curve is that of the numbers as they are.
    assert fit_logistic(scores, same, even=False)[1] == pytest.approx(-5, abs=0.4)


def test_a_calibrated_face_score() -> None:
    plain = read_heads(outputs(score=np.array([-1.0, 0.0, 4.0])))
    told = read_heads(outputs(score=np.array([-1.0, 0.0, 4.0])), (2.0, -4.0))
    assert [r.face_score.value for r in plain][1] == 0.5
    assert told[2].face_score.value == pytest.approx(1 / (1 + np.exp(-4)))
    assert told[1].face_score.value < 0.02
