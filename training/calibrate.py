"""What a similarity of two embeddings and a face score mean, measured on real pictures.

    python -m training.calibrate [--bundle models] [--rate 5]

Encodes the pictures of the LFW development pairs and reads them from their basic layers. Three
things are measured and go into the bundle's manifest, whose hash changes with them:

- the probability of one person at a cosine: a logistic curve on the 999 pairs;
- error rates at each threshold: false non-matches on the pairs of one person, false matches on all
  pairs of pictures whose people differ by name, a million of them;
- what a face score is worth: some of the pictures are made worse step by step, and a second
  logistic curve turns the head's score into the probability that a face is still matched with
  another picture of its person, where one of a thousand strangers would be.

No weight of a network is touched; the figures of `benchmarks.tasks` on the same pairs choose their
thresholds by ten-fold cross-validation.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sfic.analysis import Analysis
from sfic.bundle import ModelBundle
from sfic.codec import Codec
from sfic.errors import SficError
from training.data import load_rgb, shared_dir

THRESHOLDS = np.round(np.arange(-0.2, 0.96, 0.02), 2)
SIZE = 256
WORSE = (64, 40, 28, 20, 14, 10)  # sides in pixels that pictures are made to have
WORSE_PICTURES = 200
SCORES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
FALSE_MATCHES = 0.001  # where it is asked whether a poor face still matches

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """The pairs of the data: names of pictures, and whether they are of one person."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    same: Flags

    @classmethod
    def read(cls) -> Pairs:
        """LFW's development pairs."""
        path = shared_dir() / "data" / "faces" / "lfw256_pairs_dev.csv"
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        same = np.array([line["same"] == "1" for line in lines])
        return cls(tuple(x["a"] for x in lines), tuple(x["b"] for x in lines), same)

    @property
    def names(self) -> list[str]:
        """All pictures, once."""
        return sorted({*self.first, *self.second})


def fit_logistic(
    scores: Floats, same: Flags, even: bool = True, steps: int = 50
) -> tuple[float, float]:
    """(a, b) of P(same) = 1 / (1 + exp(-(a score + b))); Newton.

    `even`: both kinds count the same, whatever their numbers.
    """
    weight = np.full(len(same), 1.0 / len(same))
    if even:
        weight = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    x = np.stack((scores, np.ones_like(scores)), axis=1)
    w = np.zeros(2)
    for _ in range(steps):
        p = 1.0 / (1.0 + np.exp(-x @ w))
        gradient = x.T @ (weight * (p - same)) + 1e-4 * w
        hessian = (x * (weight * p * (1.0 - p))[:, None]).T @ x + 1e-4 * np.eye(2)
        w -= np.linalg.solve(hessian, gradient)
    return float(w[0]), float(w[1])


def error_rates(same: Floats, different: Floats) -> list[list[float]]:
    """[threshold, false match rate, false non-match rate] at each threshold.

    `same`, `different`: cosines of pairs of one person and of two.
    """
    return [
        [float(t), float((different >= t).mean()), float((same < t).mean())] for t in THRESHOLDS
    ]


def strangers(embeddings: Floats, people: Sequence[str]) -> Floats:
    """Cosines of all pairs of pictures [M, D] whose people have other names."""
    numbers = np.unique(np.array(people), return_inverse=True)[1]
    i, j = np.triu_indices(len(people), 1)
    other = numbers[i] != numbers[j]
    return np.asarray((embeddings @ embeddings.T)[i[other], j[other]], np.float64)


def read_faces(
    codec: Codec, pictures: Sequence[npt.NDArray[np.uint8]], rate: int
) -> list[Analysis]:
    """What the basic layers of aligned pictures say."""
    packets = [codec.encode(picture, rate, layers="basic").basic for picture in pictures]
    results = []
    for result in codec.analyze_batch(packets):
        if isinstance(result, SficError):
            raise result
        results.append(result)
    return results


def made_worse(picture: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """The picture as from a camera that gives it so many pixels."""
    small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    back = cv2.resize(small, picture.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(back, np.uint8)


def worth_of_scores(scores: Floats, matched: Flags) -> list[list[float]]:
    """[from score, to score, faces, part of them that match] for each span with a face in it."""
    rows = []
    for low, high in zip(SCORES, SCORES[1:], strict=False):
        inside = (scores >= low) & (scores < high if high < 1.0 else scores <= high)
        if inside.any():
            rows.append([low, high, int(inside.sum()), round(float(matched[inside].mean()), 4)])
    return rows


def calibrate(codec: Codec, rate: int) -> dict[str, Any]:
    """What goes into the manifest of a bundle whose face score is not calibrated."""
    pairs = Pairs.read()
    names = pairs.names
    folder = shared_dir() / "data" / "faces" / "lfw256"
    pictures = {name: load_rgb(folder / name, SIZE) for name in names}
    results = dict(zip(names, read_faces(codec, list(pictures.values()), rate), strict=True))
    vectors = {name: result.embedding.astype(np.float64) for name, result in results.items()}
    cosines = np.array(
        [vectors[a] @ vectors[b] for a, b in zip(pairs.first, pairs.second, strict=True)]
    )
    people = [name.rsplit("_", 1)[0] for name in names]
    different = strangers(np.stack([vectors[name] for name in names]), people)
    scale, offset = fit_logistic(cosines, pairs.same)

    threshold = float(np.quantile(different, 1.0 - FALSE_MATCHES))
    chosen = np.flatnonzero(pairs.same)[:WORSE_PICTURES]
    scores = [results[pairs.second[k]].face_score.value for k in chosen]
    likeness = [float(cosines[k]) for k in chosen]
    for side in WORSE:
        worse = [made_worse(pictures[pairs.second[k]], side) for k in chosen]
        for k, result in zip(chosen, read_faces(codec, worse, rate), strict=True):
            scores.append(result.face_score.value)
            likeness.append(float(vectors[pairs.first[k]] @ result.embedding))
    matched = np.array(likeness) >= threshold
    logits = np.clip(np.array(scores), 1e-6, 1 - 1e-6)
    logits = np.log(logits / (1 - logits))
    a, b = fit_logistic(logits, matched, even=False)
    return {
        "same_person": {
            "pairs": len(cosines),
            "strangers": len(different),
            "scale": round(scale, 4),
            "offset": round(offset, 4),
            "error_rates": error_rates(cosines[pairs.same], different),
        },
        "face_score": {
            "scale": round(a, 4),
            "offset": round(b, 4),
            "threshold": round(threshold, 4),
            "false_match_rate": FALSE_MATCHES,
            "matched": worth_of_scores(1 / (1 + np.exp(-(a * logits + b))), matched),
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("models"))
    parser.add_argument("--rate", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true", help="print, leave the bundle as it is")
    args = parser.parse_args()
    bundle = ModelBundle.load(args.bundle)
    plain = {name: value for name, value in bundle.meta.items() if name != "face_score"}
    measured = calibrate(Codec(replace(bundle, meta=plain)), args.rate)
    for low, high, faces, matched in measured["face_score"]["matched"]:
        print(f"face score {low:.2f} to {high:.2f}: {faces} faces, {matched:.0%} matched")
    law = measured["same_person"]
    print(f"one person as likely as two at {-law['offset'] / law['scale']:.3f}")
    if not args.dry_run:
        print(ModelBundle.write(args.bundle, {**plain, **measured}))


if __name__ == "__main__":
    main()
