"""What an evaluation leaves behind: CSV, JSON, plots and one HTML page that needs nothing else.

Belongs here: writing. The figures are `sfic.evaluation.run`'s.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfic.evaluation.codecs import Coder, scale
from sfic.evaluation.curves import bd_rate, front, interval
from sfic.evaluation.metrics import METRICS, Metric
from sfic.evaluation.plots import Line, rate_plot
from sfic.evaluation.run import Evaluation, Summary

__all__ = ["BUDGETS", "curve_plot", "figures", "side_by_side", "write_report"]

BUDGETS: Final = (100, 150, 200, 300, 400, 650, 1000, 1311)
PIXELS_1024: Final = 1024 * 1024
_SHOWN: Final = 224  # side of a picture in the page

Pictures = list[tuple[str, list[tuple[str, NDArray[np.uint8]]]]]


def write_report(
    evaluation: Evaluation,
    folder: Path,
    anchor: str | None,
    pictures: Pictures,
    title: str,
    facts: dict[str, str],
) -> list[Path]:
    """Write results.csv, results.json and report.html; returns their paths, the page first.

    `anchor`: the curve that BD-rates are against, None for none. `pictures`: of `side_by_side`.
    `facts`: what else a reader has to know (command, versions), by name.
    """
    stated = {"title": title, "facts": facts, **figures(evaluation, anchor)}
    table, values, page = (folder / f for f in ("results.csv", "results.json", "report.html"))
    _write_csv(evaluation, table)
    values.write_text(json.dumps(stated, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page.write_text(_page(evaluation, stated, pictures), encoding="utf-8")
    return [page, values, table]


def figures(evaluation: Evaluation, anchor: str | None) -> dict[str, Any]:
    """Everything that the page shows, as plain numbers; None where there is no number."""
    sources = np.array([face.source_size for face in evaluation.faces])
    curves: list[dict[str, Any]] = []
    for curve in evaluation.curves:
        sizes, whole = curve.sizes, [[r.total_bytes for r in row] for row in curve.results]
        curves.append(
            {
                "codec": curve.name,
                "settings": [
                    {
                        "setting": setting.label,
                        "bytes": _round(sizes[s].mean(), 1),
                        "bytes_largest": int(sizes[s].max()),
                        "total_bytes": _round(float(np.mean(whole[s])), 1),
                        "bpp_1024": _round(8 * sizes[s].mean() / PIXELS_1024, 6),
                        "bpp_source": _round(float((8 * sizes[s] / sources**2).mean()), 6),
                        "metrics": {},
                    }
                    for s, setting in enumerate(curve.settings)
                ],
                "at_bytes": {},
                "bd_rate": {},
            }
        )
    for metric in evaluation.metrics:
        summaries = evaluation.summaries(metric.name)
        for stated in curves:
            summary = summaries[stated["codec"]]
            for s, setting in enumerate(stated["settings"]):
                low, high = interval(summary.replicates[s], summary.values[s], metric.kind == "kid")
                setting["metrics"][metric.name] = {
                    "value": _round(summary.values[s]),
                    "low": _round(low),
                    "high": _round(high),
                }
            stated["at_bytes"][metric.name] = {
                str(budget): _round(summary.at(budget)) for budget in BUDGETS
            }
            if anchor is not None and anchor != stated["codec"]:
                theirs = summaries[anchor]
                rate = bd_rate(
                    (theirs.bytes, theirs.values),
                    (summary.bytes, summary.values),
                    metric.higher_is_better,
                )
                stated["bd_rate"][metric.name] = (
                    None
                    if rate is None
                    else {name: _round(value) for name, value in asdict(rate).items()}
                )
    return {
        "pictures": len(evaluation.faces),
        "metrics": {m.name: m.label for m in evaluation.metrics},
        "left_out": evaluation.missing,
        "anchor": anchor,
        "curves": curves,
    }


def curve_plot(
    metric: Metric, summaries: dict[str, Summary], note: str = "", bands: bool = False
) -> str:
    """SVG of a metric along curves; `bands`: with the 95 % intervals of their best settings."""
    lines = []
    for name, summary in summaries.items():
        best = front(summary.bytes, summary.values, metric.higher_is_better)
        points = list(zip(summary.bytes.tolist(), summary.values.tolist(), strict=True))
        band = []
        for point, replicates in zip(points, summary.replicates, strict=True):
            low, high = interval(replicates, point[1], metric.kind == "kid")
            if bands and point in best and math.isfinite(low):
                band.append((point[0], low, high))
        lines.append(Line(name, best, points, sorted(band)))
    arrow = "↑" if metric.higher_is_better else "↓"
    return rate_plot(f"{metric.label} {arrow}", lines, note, metric.plot_to)


def side_by_side(
    evaluation: Evaluation, coders: Sequence[Coder], budget: int, count: int
) -> Pictures:
    """The first `count` faces through each codec, at its best setting within `budget` bytes.

    Best by the evaluation's first metric. For each face a caption and captioned pictures, the
    original first. A codec whose smallest setting is larger shows that one.
    """
    by_name = {coder.name: coder for coder in coders}
    summaries = evaluation.summaries(evaluation.metrics[0].name)
    chosen = {name: _best_setting(summary, budget) for name, summary in summaries.items()}
    rows: Pictures = []
    for p, face in enumerate(evaluation.faces[:count]):
        crop, _ = face.sample.read()
        shown = [("original", crop)]
        for curve in evaluation.curves:
            s = chosen[curve.name]
            coded = by_name[curve.name].code(face.sample, crop, curve.settings[s])
            said = curve.results[s][p].judged.values.get("identity")
            identity = "" if said is None else f", identity {said:.2f}"
            caption = f"{curve.name}, {curve.settings[s].label}: {coded.bytes} bytes{identity}"
            shown.append((caption, coded.picture))
        rows.append((face.sample.name, shown))
    return rows


def _best_setting(summary: Summary, budget: float) -> int:
    values = summary.values if summary.metric.higher_is_better else -summary.values
    fits = summary.bytes <= budget
    best = np.where(fits, values, -np.inf).argmax() if fits.any() else summary.bytes.argmin()
    return int(best)


def _write_csv(evaluation: Evaluation, path: Path) -> None:
    """A row for each face, codec and setting; values that belong to one picture only."""
    names = [
        m.name
        for m in evaluation.metrics
        if any(m.name in r.judged.values for r in evaluation.curves[0].results[0])
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "picture",
                "digest",
                "codec",
                "setting",
                "bytes",
                "total_bytes",
                "bpp_1024",
                "bpp_source",
                *names,
            ]
        )
        for curve in evaluation.curves:
            for setting, row in zip(curve.settings, curve.results, strict=True):
                for face, result in zip(evaluation.faces, row, strict=True):
                    bits = 8 * result.bytes
                    writer.writerow(
                        [
                            face.sample.name,
                            face.digest,
                            curve.name,
                            setting.label,
                            result.bytes,
                            result.total_bytes,
                            f"{bits / PIXELS_1024:.6f}",
                            f"{bits / face.source_size**2:.6f}",
                            *(f"{result.judged.values[name]:.5f}" for name in names),
                        ]
                    )


_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
figure { display: inline-block; margin: .3rem; width: 224px; vertical-align: top; font-size: 12px }
figure img { display: block; width: 224px; height: 224px }
svg { width: 100%; height: auto }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(30rem, 1fr)); gap: 1rem }
details { overflow-x: auto }
"""


def _page(evaluation: Evaluation, stated: dict[str, Any], pictures: Pictures) -> str:
    title = escape(stated["title"])
    out = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{len(evaluation.faces)} faces, {time.strftime('%Y-%m-%d')}. Bytes are what is sent for"
        " one face: our packets and picture formats whole, with headers; of video codecs the"
        " picture’s own units alone. Points are means over all faces at one setting; lines are"
        " a codec’s best within the bytes.</p>",
    ]
    for name, judge in evaluation.missing.items():
        out.append(
            f"<p>Left out: {escape(METRICS[name].label)}, because the judge {escape(judge)} is "
            "not built (<code>python -m training.convert_judges</code>).</p>"
        )
    out.append('<h2>Rate curves</h2><div class="plots">')
    for metric in evaluation.metrics:
        out.append(curve_plot(metric, evaluation.summaries(metric.name)))
    out.append("</div>")
    if stated["anchor"] is not None:
        out.append(_bd_table(evaluation.metrics, stated))
    out.append("<h2>At equal bytes</h2><p>In brackets: the bytes at which a curve ends.</p>")
    for metric in evaluation.metrics:
        rows = []
        for curve in stated["curves"]:
            largest = max(setting["bytes"] for setting in curve["settings"])
            cells = [curve["codec"]]
            for budget in BUDGETS:
                value = _cell(curve["at_bytes"][metric.name][str(budget)], metric)
                cells.append(value if budget <= largest else f"{value} ({largest:.0f})")
            rows.append(cells)
        heads = ["codec", *(f"{b:,} bytes" for b in BUDGETS)]
        out.append(f"<h3>{escape(metric.label)}</h3>{_table(heads, rows)}")
    out.append("<h2>Settings</h2><details><summary>Every setting, with 95 % intervals</summary>")
    out.append(_settings_table(evaluation.metrics, stated))
    out.append("</details>")
    out.append("<h2>Side by side</h2>")
    for name, shown in pictures:
        out.append(f"<h3>{escape(name)}</h3><div>")
        out.extend(
            f'<figure><img alt="{escape(caption)}" src="{_data_uri(picture)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, picture in shown
        )
        out.append("</div>")
    out.append("<h2>Made with</h2><dl>")
    out.extend(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in stated["facts"].items())
    out.append("</dl></body></html>\n")
    return "\n".join(out)


def _bd_table(metrics: Sequence[Metric], stated: dict[str, Any]) -> str:
    anchor = stated["anchor"]
    rows = []
    for curve in stated["curves"]:
        if curve["codec"] == anchor:
            continue
        cells = [curve["codec"]]
        for metric in metrics:
            rate = curve["bd_rate"][metric.name]
            cells.append(
                "no quality in common"
                if rate is None
                else f"{rate['percent']:+.1f} % ({_cell(rate['low'], metric)} to "
                f"{_cell(rate['high'], metric)}, {100 * rate['covered']:.0f} % of the anchor)"
            )
        rows.append(cells)
    return (
        f"<h2>BD-rate against {escape(anchor)}</h2><p>Mean difference of bytes at equal quality, "
        "below 0 is fewer; in brackets the qualities that both curves cover, and how much of the "
        "anchor’s range that is.</p>" + _table(["codec", *(m.label for m in metrics)], rows)
    )


def _settings_table(metrics: Sequence[Metric], stated: dict[str, Any]) -> str:
    rows = [
        [
            f"{curve['codec']}, {setting['setting']}",
            f"{setting['bytes']:.0f}",
            f"{setting['total_bytes']:.0f}",
            f"{setting['bpp_1024']:.5f}",
            f"{setting['bpp_source']:.5f}",
            *(
                f"{_cell(m['value'], metric)} ({_cell(m['low'], metric)} to "
                f"{_cell(m['high'], metric)})"
                for metric in metrics
                for m in [setting["metrics"][metric.name]]
            ),
        ]
        for curve in stated["curves"]
        for setting in curve["settings"]
    ]
    heads = [
        "setting",
        "bytes",
        "with all headers",
        "bpp at 1024²",
        "bpp at source",
        *(f"{m.label} (95 %)" for m in metrics),
    ]
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: float | None, metric: Metric) -> str:
    return "–" if value is None else f"{value:.{metric.decimals}f}"


def _round(value: float | None, digits: int = 5) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def _data_uri(picture: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(scale(picture, _SHOWN)).save(file, "WEBP", quality=92, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
