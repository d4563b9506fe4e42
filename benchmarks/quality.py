"""Quality per byte beside VVC, by judges that no training has seen.

    python -m benchmarks.quality [--rates 1 2 ... 9] [--effort N] [--limit N] [--sheet DIR]

The 60 lossless CelebA-HQ dev pictures and the 12 London ones that VVC was coded on, through three
curves of ours (basic alone; basic and middle; all layers) and VVC's streams of the same pictures,
judged at 512 px in the same way. Bytes are packets as sent, headers included; VVC counts without
its headers. At each number of bytes a codec is worth the best of its settings whose mean fits,
interpolated to the next better one. Differences are paired: intervals come from resampling
pictures, for all curves alike.

What was judged is kept (`SFIC_CACHE/quality`): a run that is cut off goes on, VVC is judged once.
Needs the face sets (`SFIC_SHARED`) and the judges (`python -m training.convert_judges`).
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console

from benchmarks.report import DOCS, RESULTS, markdown_table, write_markdown, write_result
from sfic.cli.evaluate import show_progress
from sfic.codec import Codec
from sfic.evaluation.codecs import Coder, SficCoder, SficEncoder, scale
from sfic.evaluation.curves import bd_rate, interval
from sfic.evaluation.dataset import Sample
from sfic.evaluation.judges import Judges
from sfic.evaluation.metrics import METRICS, Examiner
from sfic.evaluation.report import BUDGETS, curve_plot
from sfic.evaluation.run import Evaluation, Summary, evaluate
from sfic.evaluation.store import Store
from sfic.evaluation.vvc import VvcStreams
from sfic.layers import LAYERS
from sfic.runtime import PROVIDERS
from training.data import FaceRow, cache_dir, read_index, shared_dir

SETS = ("celebahq512png", "london1024")
MOST_BYTES = 2500  # beyond the last budget, so that VVC is interpolated there too
PLOTTED = ("identity", "vgg", "landmarks", "kid", "rank1")


def faces_of_vvc(streams: VvcStreams, limit: int) -> list[FaceRow]:
    """The dev pictures that VVC was coded on; `limit` of each set, 0: all."""
    rows = []
    for name in SETS:
        chosen = [r for r in read_index("dev", (name,)) if r.path.name in streams.images]
        rows += chosen[: limit or None]
    return rows


def compared(summaries: dict[str, Summary], ours: Sequence[str]) -> dict[str, Any]:
    """Our curves and VVC at each number of bytes, with paired differences; BD-rates."""
    vvc = summaries["vvc"]
    metric = vvc.metric
    theirs = vvc.replicates_at(BUDGETS)
    sign = 1.0 if metric.higher_is_better else -1.0
    stated: dict[str, Any] = {"vvc": [plain(vvc.at(b)) for b in BUDGETS]}
    for name in ours:
        curve = summaries[name]
        replicates = curve.replicates_at(BUDGETS)
        rows = []
        for b, budget in enumerate(BUDGETS):
            value, anchor = curve.at(budget), vvc.at(budget)
            row: dict[str, Any] = {
                "value": plain(value),
                "interval": bounds(replicates[b], value, metric.kind == "kid"),
                "bytes": plain(min(budget, float(curve.bytes.max())), 1),
            }
            if value is not None and anchor is not None:
                gain = sign * (value - anchor)
                row["gain"] = plain(gain)  # above 0: ours is better
                row["gain_interval"] = bounds(
                    sign * (replicates[b] - theirs[b]), gain, metric.kind == "kid"
                )
            rows.append(row)
        rate = bd_rate(
            (vvc.bytes, vvc.values), (curve.bytes, curve.values), metric.higher_is_better
        )
        stated[name] = {
            "at": rows,
            "bd_rate": None if rate is None else {k: plain(v) for k, v in asdict(rate).items()},
        }
    return stated


def bounds(
    replicates: npt.NDArray[np.float64], value: float | None, jackknife: bool
) -> list[float | None]:
    """95 % interval, None for what is not known."""
    if value is None:
        return [None, None]
    return [plain(edge) for edge in interval(replicates, value, jackknife)]


def plain(value: float | None, digits: int = 4) -> float | None:
    """Rounded, None for what is no number."""
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def table(metric: str, stated: dict[str, Any], ours: Sequence[str]) -> str:
    """Markdown: our curves and VVC over bytes; bold where the whole interval is on our side."""
    decimals = METRICS[metric].decimals

    def word(value: float | None) -> str:
        return "–" if value is None else f"{value:.{decimals}f}"

    rows = []
    for b, budget in enumerate(BUDGETS):
        cells = [f"{budget:,}"]
        for name in ours:
            at = stated[name]["at"][b]
            cell = word(at["value"])
            if "gain" in at:
                low, high = at["gain_interval"]
                cell += f" ({at['gain']:+.{decimals}f}"
                if low is not None:
                    cell += f", {low:+.{decimals}f} to {high:+.{decimals}f}"
                cell += ")"
                if low is not None and low > 0:
                    cell = f"**{cell}**"
            if at["value"] is not None and at["bytes"] < budget:
                cell += f" with {at['bytes']:.0f} bytes"
            cells.append(cell)
        rows.append([*cells, word(stated["vvc"][b])])
    return markdown_table(["bytes", *ours, "VVC"], rows)


def bd_table(stated: dict[str, dict[str, Any]], ours: Sequence[str]) -> str:
    """Markdown: BD-rates with the qualities they cover."""
    rows = []
    for metric, figures in stated.items():
        cells = [METRICS[metric].label]
        for name in ours:
            rate = figures[name]["bd_rate"]
            cells.append(
                "no quality in common"
                if rate is None
                else f"{rate['percent']:+.1f} % ({rate['low']:.3f} to {rate['high']:.3f}, "
                f"{100 * rate['covered']:.0f} % of VVC's range)"
            )
        rows.append(cells)
    return markdown_table(["metric", *ours], rows)


def contact_sheet(
    folder: Path,
    evaluation: Evaluation,
    encoder: SficEncoder,
    vvc: VvcStreams,
    rate: int,
    effort: int,
    count: int = 16,
) -> Path:
    """Rows of original, VVC at equal bytes, basic, middle, enhanced; returns the PNG."""
    curves = {curve.name: curve for curve in evaluation.curves}
    name = "sfic" + (f", effort {effort}" if effort else "")
    ours, theirs = curves[name], curves["vvc"]
    at = next(i for i, s in enumerate(ours.settings) if s.quality == rate)
    means, target = theirs.sizes.mean(axis=1), ours.sizes[at].mean()
    fitting = np.where(means <= target, means, -np.inf)
    chosen = fitting.argmax() if (means <= target).any() else means.argmin()
    rows = []
    for face in evaluation.faces[:count]:
        crop, _ = face.sample.read()
        shown = [crop, vvc.code(face.sample, crop, theirs.settings[int(chosen)]).picture]
        coded = encoder.encode(crop, effort=effort, rate=rate)
        shown += [encoder.codec.decode(coded, layer, 512) for layer in LAYERS]
        rows.append(np.concatenate([scale(picture, 224) for picture in shown], axis=1))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rate-{rate}-effort-{effort}-beside-vvc-{means[chosen]:.0f}-bytes.png"
    Image.fromarray(np.concatenate(rows)).save(path)
    return path


def write(
    evaluation: Evaluation,
    ours: Sequence[str],
    effort: int,
    bundle: str,
    provider: str,
    out: Path | None,
) -> Path:
    """JSON to the results, Markdown and plots to the docs, or all to `out`; returns the
    Markdown's path."""
    docs = out or DOCS
    sets = [face.sample.path.parent.name for face in evaluation.faces]
    groups: dict[str, list[int]] = {"all": list(range(len(sets)))}
    for name in SETS:
        groups[name] = [i for i, other in enumerate(sets) if other == name]
    figures: dict[str, Any] = {}
    docs.mkdir(parents=True, exist_ok=True)
    stem = f"quality-effort-{effort}"
    text = [
        f"{len(sets)} faces ({', '.join(f'{len(groups[n])} of {n}' for n in SETS)}), effort "
        f"{effort}, model bundle `{bundle}` on {provider}. In brackets: gain on "
        "VVC at the same bytes (above 0 is better, for every metric) and its paired 95 % interval; "
        "bold where all of it is above 0. `with N bytes`: the curve ends there.",
    ]
    for name, chosen in groups.items():
        if len(chosen) < 2:
            continue
        stated: dict[str, Any] = {}
        for metric in evaluation.metrics:
            summaries = evaluation.summaries(metric.name, chosen)
            stated[metric.name] = compared(summaries, ours)
            if name == "all":
                text.append(f"## {metric.label}\n\n{table(metric.name, stated[metric.name], ours)}")
                if metric.name in PLOTTED:
                    drawing = docs / f"{stem}-{metric.name}.svg"
                    note = f"{len(chosen)} faces, band: 95 %"
                    svg = curve_plot(metric, summaries, note, bands=True)
                    drawing.write_text(svg + "\n", encoding="utf-8")
                    text.append(f"![{metric.label}]({drawing.name})")
        figures[name] = {"pictures": len(chosen), "metrics": stated}
    text.append(f"## BD-rate against VVC\n\n{bd_table(figures['all']['metrics'], ours)}")
    settings = {
        curve.name: [
            {
                "setting": s.label,
                "bytes": plain(float(sizes.mean()), 1),
                "bytes_largest": int(sizes.max()),
            }
            | {m.name: plain(summary[m.name][curve.name].values[i]) for m in evaluation.metrics}
            for i, (s, sizes) in enumerate(zip(curve.settings, curve.sizes, strict=True))
        ]
        for summary in [{m.name: evaluation.summaries(m.name) for m in evaluation.metrics}]
        for curve in evaluation.curves
    }
    write_result(
        stem,
        {
            "model_bundle": bundle,
            "provider": provider,
            "budgets": BUDGETS,
            "left_out": evaluation.missing,
            "sets": figures,
            "settings": settings,
        },
        out or RESULTS,
    )
    return write_markdown(docs / f"{stem}.md", f"Quality beside VVC, effort {effort}", text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=list(range(1, 10)))
    parser.add_argument("--basic-rates", type=int, nargs="+", default=[1, 5, 9])
    parser.add_argument("--middle-rates", type=int, nargs="+", default=[1, 3, 5, 7, 9])
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="so many faces of each set")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), choices=list(METRICS))
    parser.add_argument("--sheet", type=Path, help="write contact sheets into this folder")
    parser.add_argument("--out", type=Path, help="folder for everything, in place of the usual")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="faces at once")
    parser.add_argument("--provider", default="auto", choices=PROVIDERS)
    args = parser.parse_args()
    console = Console()
    codec = Codec.load(provider=args.provider, threads=1)
    encoder = SficEncoder(codec)
    vvc = VvcStreams(shared_dir() / "data" / "vvc")
    everything = SficCoder(encoder, "enhanced", args.rates, args.effort)
    basic = SficCoder(encoder, "basic", args.basic_rates, args.effort)
    middle = SficCoder(encoder, "middle", args.middle_rates, args.effort)
    coders: list[Coder] = [basic, middle, everything, vvc]
    examiner = Examiner(Judges(), args.metrics)
    for name, judge in examiner.missing.items():
        console.print(f"left out: {name}, the judge {judge} is not built")
    samples = [Sample(r.path.name, r.path) for r in faces_of_vvc(vvc, args.limit)]
    folder = cache_dir() / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        Store(folder / "results.sqlite", examiner.fingerprint) as store,
        show_progress(console) as tell,
    ):
        evaluation = evaluate(samples, coders, examiner, store, MOST_BYTES, args.workers, tell)
    ours = [basic.name, middle.name, everything.name]
    made = codec.model_bundle, codec.provider
    console.print(str(write(evaluation, ours, args.effort, *made, args.out)))
    for rate in args.rates if args.sheet else ():
        console.print(str(contact_sheet(args.sheet, evaluation, encoder, vvc, rate, args.effort)))


if __name__ == "__main__":
    main()
