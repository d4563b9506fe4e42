"""What a similarity of two embeddings means: the probability of one person, error rates.

    python -m training.calibrate [--bundle models] [--rate 5]

Encodes the LFW development pairs (999, real photographs of the same or of different people), reads
both embeddings of a pair from basic layers, and fits a logistic curve on their cosines; then counts
false matches and false non-matches at each threshold. Both go into the bundle's manifest, whose
hash changes with them. No weight of a network is touched; the figures of `benchmarks.tasks` on the
same pairs choose their thresholds by ten-fold cross-validation.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfic.bundle import ModelBundle
from sfic.codec import Codec
from sfic.errors import SficError
from training.data import load_rgb, shared_dir

THRESHOLDS = np.round(np.arange(-0.2, 0.96, 0.02), 2)
SIZE = 256

Floats = npt.NDArray[np.float64]


def fit_logistic(
    scores: Floats, same: npt.NDArray[np.bool_], steps: int = 50
) -> tuple[float, float]:
    """(a, b) of P(same) = 1 / (1 + exp(-(a score + b))), both kinds counting the same; Newton."""
    weight = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    x = np.stack((scores, np.ones_like(scores)), axis=1)
    w = np.zeros(2)
    for _ in range(steps):
        p = 1.0 / (1.0 + np.exp(-x @ w))
        gradient = x.T @ (weight * (p - same)) + 1e-4 * w
        hessian = (x * (weight * p * (1.0 - p))[:, None]).T @ x + 1e-4 * np.eye(2)
        w -= np.linalg.solve(hessian, gradient)
    return float(w[0]), float(w[1])


def error_rates(scores: Floats, same: npt.NDArray[np.bool_]) -> list[list[float]]:
    """[threshold, false match rate, false non-match rate] of each threshold."""
    return [
        [float(t), float((scores[~same] >= t).mean()), float((scores[same] < t).mean())]
        for t in THRESHOLDS
    ]


def pair_scores(codec: Codec, rate: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Cosine of each pair, and whether it is one person."""
    root = shared_dir() / "data" / "faces"
    with (root / "lfw256_pairs_dev.csv").open(newline="") as file:
        pairs = [(line["a"], line["b"], line["same"] == "1") for line in csv.DictReader(file)]
    names = sorted({name for a, b, _ in pairs for name in (a, b)})
    packets = [codec.encode(load_rgb(root / "lfw256" / name, SIZE), rate).basic for name in names]
    embeddings: dict[str, Any] = {}
    for name, result in zip(names, codec.analyze_batch(packets), strict=True):
        if isinstance(result, SficError):
            raise result
        embeddings[name] = result.embedding
    scores = np.array([float(embeddings[a] @ embeddings[b]) for a, b, _ in pairs])
    return scores, np.array([same for _, _, same in pairs])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("models"))
    parser.add_argument("--rate", type=int, default=5)
    args = parser.parse_args()
    codec = Codec.load(args.bundle)
    scores, same = pair_scores(codec, args.rate)
    scale, offset = fit_logistic(scores, same)
    meta = {
        **codec.bundle.meta,
        "same_person": {
            "pairs": len(scores),
            "scale": round(scale, 4),
            "offset": round(offset, 4),
            "error_rates": error_rates(scores, same),
        },
    }
    print(ModelBundle.write(args.bundle, meta))


if __name__ == "__main__":
    main()
