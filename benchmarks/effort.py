"""What each effort costs, and gains at equal bytes.

    python -m benchmarks.effort [--faces 12] [--rates 2 4 6 8] [--efforts 1 2 3]

Lossless CelebA-HQ dev pictures at effort 0 and at the others, judged at 512 px. An effort's gain at
a rate is its value less what effort 0 is worth with the same mean bytes (see
`sfic.evaluation.curves.best_at`), so a smaller packet counts as much as a better picture.
Differences are paired: intervals come from resampling pictures. What was judged is kept
(`SFIC_CACHE/quality`). Needs the face sets (`SFIC_SHARED`), the judges, and for efforts 2 and 3 the
train extra.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.report import DOCS, RESULTS, markdown_table, write_markdown, write_result
from sfic.cli.evaluate import show_progress
from sfic.codec import Codec
from sfic.evaluation.codecs import SficCoder, SficEncoder
from sfic.evaluation.curves import interval
from sfic.evaluation.dataset import Sample
from sfic.evaluation.judges import WORKING_SIZE, Judges
from sfic.evaluation.metrics import METRICS, Examiner
from sfic.evaluation.run import Evaluation, Summary, evaluate
from sfic.evaluation.store import Store
from sfic.packet import RATES
from training.data import cache_dir, load_rgb, read_index

SHOWN = ("identity", "vgg", "landmarks", "psnr")
MOST_BYTES = 2000
TIMED_FACES = 3


def gains(base: Summary, other: Summary) -> list[dict[str, float | list[float]]]:
    """For each setting of `other`: bytes, value, and gain on `base` at its bytes with interval."""
    metric = base.metric
    sign = 1.0 if metric.higher_is_better else -1.0
    rows: list[dict[str, float | list[float]]] = []
    for s, size in enumerate(other.bytes):
        anchor = base.at(float(size))
        row: dict[str, float | list[float]] = {
            "bytes": round(float(size), 1), "value": round(float(other.values[s]), 4)
        }
        if anchor is not None:
            gain = sign * (float(other.values[s]) - anchor)
            # Bytes differ between replicates; the mean's stand for them, as the curve's do.
            drawn = sign * (other.replicates[s] - base.replicates_at([float(size)])[0])
            low, high = interval(drawn, gain)
            row |= {"gain": round(gain, 4), "interval": [round(low, 4), round(high, 4)]}
        rows.append(row)
    return rows


def milliseconds(codec: Codec, crops: Sequence[Any], rate: int, effort: int) -> float:
    """Mean time to encode a face, after one for warming up."""
    codec.encode(crops[0], rate, effort)
    begin = time.perf_counter()
    for crop in crops:
        codec.encode(crop, rate, effort)
    return round(1000 * (time.perf_counter() - begin) / len(crops), 1)


def figures(evaluation: Evaluation, rates: Sequence[int], efforts: Sequence[int]) -> dict[str, Any]:
    """Gains by metric, effort and rate."""
    base, *others = evaluation.curves
    stated: dict[str, Any] = {}
    for metric in evaluation.metrics:
        summaries = evaluation.summaries(metric.name)
        stated[metric.name] = {
            str(effort): dict(
                zip(
                    map(str, rates), gains(summaries[base.name], summaries[curve.name]), strict=True
                )
            )
            for effort, curve in zip(efforts, others, strict=True)
        }
    return stated


def table(metric: str, stated: dict[str, Any], rates: Sequence[int]) -> str:
    """Markdown: rows of rates, columns of efforts."""
    decimals = METRICS[metric].decimals
    rows = []
    for rate in map(str, rates):
        cells = [rate]
        for effort in stated.values():
            at = effort[rate]
            cell = f"{at['value']:.{decimals}f} with {at['bytes']:.0f} bytes"
            if "gain" in at:
                low, high = at["interval"]
                words = f"{at['gain']:+.{decimals}f}, {low:+.{decimals}f} to {high:+.{decimals}f}"
                cell += f" (**{words}**)" if low > 0 else f" ({words})"
            cells.append(cell)
        rows.append(cells)
    return markdown_table(["rate", *(f"effort {effort}" for effort in stated)], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=12)
    parser.add_argument("--rates", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--efforts", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, help="folder for everything, in place of the usual")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="faces at once")
    args = parser.parse_args()
    codec = Codec.load(threads=1)
    encoder = SficEncoder(codec)
    coders = [
        SficCoder(encoder, "enhanced", list(RATES), 0),
        *(SficCoder(encoder, "enhanced", args.rates, effort) for effort in args.efforts),
    ]
    rows = read_index("dev", ("celebahq512png",))[: args.faces]
    samples = [Sample(row.path.name, row.path) for row in rows]
    examiner = Examiner(Judges(), SHOWN)
    folder = cache_dir() / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    with (
        Store(folder / "effort.sqlite", examiner.fingerprint) as store,
        show_progress(console) as tell,
    ):
        evaluation = evaluate(samples, coders, examiner, store, MOST_BYTES, args.workers, tell)
    crops = [load_rgb(row.path, WORKING_SIZE) for row in rows[:TIMED_FACES]]
    middle = args.rates[len(args.rates) // 2]
    spent = {str(e): milliseconds(codec, crops, middle, e) for e in (0, *args.efforts)}
    stated = figures(evaluation, args.rates, args.efforts)
    facts = {
        "model_bundle": codec.model_bundle,
        "faces": len(evaluation.faces),
        "milliseconds_a_face": {"rate": middle, "threads": 1, "by_effort": spent},
        "metrics": stated,
    }
    write_result("effort", facts, args.out or RESULTS)
    mean = {
        effort: float(np.mean([row.get("gain", np.nan) for row in rows.values()]))
        for effort, rows in stated["identity"].items()
    }
    times = ", ".join(f"effort {e} {ms:,.0f} ms" for e, ms in spent.items())
    sums = ", ".join(f"effort {e} {gain:+.3f}" for e, gain in mean.items())
    text = [
        f"{len(evaluation.faces)} faces of `celebahq512png`, model bundle `{codec.model_bundle}`. "
        "In brackets: gain on effort 0 at the same bytes (above 0 is better, for every metric) and "
        "its paired 95 % interval; bold where all of it is above 0.",
        f"Time to encode a face at rate {middle}, one thread: {times}.",
        f"Mean gain in identity over the rates: {sums}.",
        *(f"## {METRICS[n].label}\n\n{table(n, stated[n], args.rates)}" for n in stated),
    ]
    path = write_markdown((args.out or DOCS) / "effort.md", "Efforts at equal bytes", text)
    console.print(str(path))


if __name__ == "__main__":
    main()
