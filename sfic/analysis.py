"""Machine-task results of one face, and their reading from the outputs of the heads.

Pure data and arithmetic; running the network belongs to `sfic.codec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

__all__ = [
    "EXPRESSIONS",
    "HEADS",
    "PARSING_CLASSES",
    "PARSING_SIZE",
    "Analysis",
    "Estimate",
    "Expression",
    "Pose",
    "SamePerson",
    "read_heads",
]

EXPRESSIONS: Final = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
# CelebAMask-HQ's classes, in its order; left and right are the person's.
PARSING_CLASSES: Final = (
    "background", "skin", "nose", "glasses", "left eye", "right eye", "left brow", "right brow",
    "left ear", "right ear", "mouth", "upper lip", "lower lip", "hair", "hat", "earring",
    "necklace", "neck", "clothes",
)  # fmt: skip
PARSING_SIZE: Final = 64
# Outputs of the heads network, in its order; `read_heads` says what they are.
HEADS: Final = (
    "embedding", "identity_error", "age", "gender", "smile", "pose", "landmarks",
    "landmarks_error", "score", "expression", "glasses", "eyes_open", "mouth_open", "facial_hair",
    "parsing",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A value with a confidence 0..1."""

    value: float
    confidence: float


@dataclass(frozen=True)
class Pose:
    """Head pose in degrees: yaw (to the picture's right), pitch (down), roll (clockwise)."""

    yaw: float
    pitch: float
    roll: float
    confidence: float


@dataclass(frozen=True)
class Expression:
    """The likeliest of `EXPRESSIONS`, how sure it is, and all probabilities."""

    name: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Analysis:
    """What the basic layer says of a face.

    `embedding`: unit float32 [D], identity; compare by dot product. `age`: years. `gender`:
    presentation, 0 female .. 1 male. `smile`: probability. `landmarks`: float32 [68, 2], iBUG
    order, x and y as parts of the crop, 0..1. `face_score`: how far to trust the rest, 0..1; of a
    calibrated bundle the probability that the face is matched with another picture of its person.
    `glasses`, `eyes_open`, `mouth_open`, `facial_hair` (a beard or moustache): probabilities.
    `parsing`: uint8 [64, 64], the number of the `PARSING_CLASSES` at each place of the crop.
    """

    embedding: FloatArray
    embedding_confidence: float
    age: Estimate
    gender: Estimate
    smile: Estimate
    pose: Pose
    landmarks: FloatArray
    landmarks_confidence: float
    face_score: Estimate
    expression: Expression
    glasses: Estimate
    eyes_open: Estimate
    mouth_open: Estimate
    facial_hair: Estimate
    parsing: npt.NDArray[np.uint8]

    @property
    def areas(self) -> FloatArray:
        """Part of the crop that each of the `PARSING_CLASSES` covers, float32 [19]."""
        counts = np.bincount(self.parsing.ravel(), minlength=len(PARSING_CLASSES))
        return (counts / self.parsing.size).astype(np.float32)


@dataclass(frozen=True)
class SamePerson:
    """What the cosine of two embeddings means, measured on real pairs (`training.calibrate`).

    `probability` weighs both kinds of pairs the same: in a search among many people, multiply the
    odds by how likely a match is to begin with.
    """

    scale: float
    offset: float
    error_rates: tuple[tuple[float, float, float], ...]

    def probability(self, similarity: float) -> float:
        """Probability of one person, 0..1, at a cosine of -1..1."""
        return float(1.0 / (1.0 + np.exp(-(self.scale * similarity + self.offset))))

    @property
    def even(self) -> float:
        """The cosine at which one person is as likely as two."""
        return -self.offset / self.scale

    def errors(self, threshold: float) -> tuple[float, float]:
        """(False match rate, false non-match rate) when a cosine of `threshold` is a match."""
        table = np.array(self.error_rates)  # [n, 3]
        match, other = (float(np.interp(threshold, table[:, 0], table[:, i])) for i in (1, 2))
        return match, other


def _expressions(logits: FloatArray) -> list[Expression]:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))  # [n, 7]
    # As `_estimates`: no better than a guess is confidence 0.
    guess = 1.0 / len(EXPRESSIONS)
    found = []
    for probabilities in (weights / weights.sum(axis=1, keepdims=True)).tolist():
        highest = max(probabilities)
        found.append(
            Expression(
                EXPRESSIONS[probabilities.index(highest)],
                (highest - guess) / (1.0 - guess),
                dict(zip(EXPRESSIONS, probabilities, strict=True)),
            )
        )
    return found


def _estimates(logits: npt.ArrayLike) -> list[Estimate]:
    """Probabilities of logits [n]; no better than a guess is confidence 0."""
    values = 1.0 / (1.0 + np.exp(-np.clip(np.asarray(logits, np.float64), -30.0, 30.0)))
    return [Estimate(value, abs(2.0 * value - 1.0)) for value in values.tolist()]


def _within(log_errors: npt.ArrayLike, tolerance: float) -> list[float]:
    """Confidences from predicted log errors [n]: the part of a Laplace law within `tolerance`."""
    scales = np.exp(np.clip(np.asarray(log_errors, np.float64), -8.0, 8.0))
    confidences: list[float] = (1.0 - np.exp(-tolerance / scales)).tolist()
    return confidences


def read_heads(
    outputs: Mapping[str, npt.NDArray[Any]], score_law: tuple[float, float] = (1.0, 0.0)
) -> list[Analysis]:
    """Outputs of the heads network for n faces to n results.

    `score_law`: scale and offset that calibrate the logit of the face score.

    `embedding` [n, D] unit; `age` [n, 2] years/50 and log error; `gender` and `smile` [n] logits;
    `pose` [n, 4] degrees/30 and log error; `landmarks` [n, 68, 2] crop fractions;
    `landmarks_error` [n] log error; `score` [n] logit; `identity_error` [n] log of 1 - cosine;
    `expression` [n, 7], `glasses`, `eyes_open`, `mouth_open` and `facial_hair` [n] logits;
    `parsing` uint8 [n, 64, 64].
    """
    scale, offset = score_law
    embedding = np.asarray(outputs["embedding"], dtype=np.float32)
    landmarks = np.asarray(outputs["landmarks"], dtype=np.float32)
    parsing = np.asarray(outputs["parsing"], dtype=np.uint8)
    age, pose, certainty = (
        np.asarray(outputs[name], dtype=np.float64) for name in ("age", "pose", "identity_error")
    )
    # Columns for all faces at once: numpy's price is for a call, whatever its length.
    embedding_confidence = np.clip(1.0 - np.exp(np.minimum(certainty, 0.0)), 0.0, 1.0).tolist()
    years = np.clip(50.0 * age[:, 0], 0.0, 120.0).tolist()
    years_confidence = _within(age[:, 1], 5.0 / 50)
    yaw, pitch, roll = (30.0 * pose[:, :3].T).tolist()
    pose_confidence = _within(pose[:, 3], 5.0 / 30)
    landmarks_confidence = _within(outputs["landmarks_error"], 0.02)
    yes_or_no = {
        name: _estimates(outputs[name])
        for name in ("gender", "smile", "glasses", "eyes_open", "mouth_open", "facial_hair")
    }
    face_score = _estimates(scale * np.asarray(outputs["score"], np.float64) + offset)
    expression = _expressions(outputs["expression"])
    return [
        Analysis(
            embedding=embedding[i],
            embedding_confidence=embedding_confidence[i],
            age=Estimate(years[i], years_confidence[i]),
            gender=yes_or_no["gender"][i],
            smile=yes_or_no["smile"][i],
            pose=Pose(yaw[i], pitch[i], roll[i], pose_confidence[i]),
            landmarks=landmarks[i],
            landmarks_confidence=landmarks_confidence[i],
            face_score=face_score[i],
            expression=expression[i],
            glasses=yes_or_no["glasses"][i],
            eyes_open=yes_or_no["eyes_open"][i],
            mouth_open=yes_or_no["mouth_open"][i],
            facial_hair=yes_or_no["facial_hair"][i],
            parsing=parsing[i],
        )
        for i in range(len(embedding))
    ]
