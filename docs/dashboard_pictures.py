"""Pictures of Grafana's dashboards: `python docs/dashboard_pictures.py [FOLDER]`, from a real run.

Drawn from the dashboards' own JSON and what a real Prometheus answers to their queries, not by
Grafana, which is in no package registry: places, titles, units, legends and colours are those of
the JSON, the look is ours. Belongs here: drawing. Who asks what: `dashboards`.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from dashboards import DASHBOARDS, Prometheus, Series, Span, in_use, panels, watched_services
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image
from screenshots import CAMERAS, as_frame, synthetic_face

from sfic.codec import Codec
from sfic.locations import demo_photograph

FACES = 12
SCRAPE_SECONDS = 5
RUN_SECONDS = 150.0
FRAME_SECONDS = 6.0
LOOK_SECONDS = 2.0

# Pixels: a column and a row of Grafana's grid, the space between panels, the head of the page;
# a line of a legend.
COLUMN, ROW, GAP, HEAD = 58, 34, 8, 74
LEGEND = 18
PAGE, PANEL, BORDER = "#111217", "#181b1f", "#2a2d33"
TEXT, DIM, GRID = "#d5d6da", "#9a9ba3", "#2c2f36"
LINES = (
    *("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2"),
    *("#b877d9", "#fade2a", "#56a64b", "#ffb357"),
)
THRESHOLDS = {"green": "#73bf69", "red": "#f2495c", "orange": "#ff9830"}
UNITS = {
    "short": ("", 1000.0, ("", "K", "Mil", "Bil")),
    "cps": ("c/s", 1000.0, (" ", " K", " M", " G")),
    "Bps": ("B/s", 1000.0, (" ", " k", " M", " G")),
    "bytes": ("B", 1024.0, (" ", " Ki", " Mi", " Gi")),
}
"""Of Grafana's units: what is written behind the number, and its steps with their prefixes."""


def with_unit(value: float, unit: str) -> str:
    """A number as a panel writes it."""
    if unit == "s":
        if value and abs(value) < 1.0:
            return f"{value * 1000:.3g} ms"
        return f"{value:.3g} s" if abs(value) < 60 else f"{value / 60:.3g} min"
    suffix, base, prefixes = UNITS[unit]
    step = 0
    while abs(value) >= base and step < len(prefixes) - 1:
        value, step = value / base, step + 1
    return f"{value:.3g}{prefixes[step]}{suffix}".rstrip()


class Page:
    """One dashboard's picture: pixels from the top left, panels where the JSON has them."""

    def __init__(
        self, dashboard: dict[str, Any], answers: dict[int, list[Series]], span: Span
    ) -> None:
        self._answers, self._span = answers, span
        rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
        self._width, self._height = 24 * COLUMN + GAP, HEAD + rows * ROW + GAP
        self.figure = Figure((self._width / 100, self._height / 100), dpi=100, facecolor=PAGE)
        self._head(dashboard)
        draw = {
            "row": self._row,
            "stat": self._stat,
            "timeseries": self._timeseries,
            "table": self._table,
        }
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            x, y = place["x"] * COLUMN + GAP, HEAD + place["y"] * ROW
            width, height = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
            draw[panel["type"]](panel, x, y, width, height)

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        left, bottom = x / self._width, 1.0 - (y + height) / self._height
        return self.figure.add_axes(
            (left, bottom, width / self._width, height / self._height), facecolor="none"
        )

    def _text(self, x: float, y: float, text: str, size: float, color: str, **how: Any) -> None:
        how = {"va": "center", **how}
        self.figure.text(
            x / self._width, 1.0 - y / self._height, text, fontsize=size, color=color, **how
        )

    def _head(self, dashboard: dict[str, Any]) -> None:
        self._text(GAP + 6, 24, dashboard["title"], 14, TEXT, weight="bold")
        chosen = "   ".join(
            f"{variable['label']}: {variable['current']['text']}"
            for variable in dashboard["templating"]["list"]
        )
        first, last = (datetime.fromtimestamp(t) for t in (self._span.start, self._span.end))
        shown = f"{chosen}      {first:%Y-%m-%d %H:%M:%S} to {last:%H:%M:%S}"
        self._text(self._width - GAP - 6, 24, shown, 9.5, DIM, ha="right")
        self._text(GAP + 6, 52, dashboard["description"], 9.5, DIM)
        told = "drawn by docs/dashboard_pictures.py from the dashboard's JSON, not by Grafana"
        self._text(self._width - GAP - 6, 52, told, 9.5, DIM, ha="right", style="italic")

    def _row(self, panel: dict[str, Any], x: float, y: float, *_: float) -> None:
        self._text(x + 6, y + ROW / 2, panel["title"], 11, TEXT, weight="bold")

    def _frame(self, panel: dict[str, Any], x: float, y: float, w: float, h: float) -> None:
        box = FancyBboxPatch(
            (x / self._width, 1.0 - (y + h) / self._height),
            w / self._width,
            h / self._height,
            boxstyle="square,pad=0",
            facecolor=PANEL,
            edgecolor=BORDER,
            linewidth=0.8,
            transform=self.figure.transFigure,
            zorder=-1,
        )
        self.figure.add_artist(box)
        self._text(x + 10, y + 16, panel["title"], 10, TEXT)

    def _nothing(self, x: float, y: float, w: float, h: float) -> None:
        self._text(x + w / 2, y + h / 2, "No data", 11, DIM, ha="center")

    def _stat(self, panel: dict[str, Any], x: float, y: float, w: float, h: float) -> None:
        self._frame(panel, x, y, w, h)
        points = [each.points for each in self._answers[panel["id"]] if each.points]
        if not points:
            return self._nothing(x, y, w, h)
        defaults = panel["fieldConfig"]["defaults"]
        value = points[0][-1][1]
        reached = [s for s in defaults["thresholds"]["steps"] if value >= (s["value"] or -math.inf)]
        color = THRESHOLDS[reached[-1]["color"]]
        told = with_unit(value, defaults["unit"])
        self._text(x + w / 2, y + h * 0.47, told, 24, color, ha="center", weight="bold")
        axes = self._axes(x + 1, y + h * 0.68, w - 2, h * 0.31)
        axes.axis("off")
        times, values = zip(*points[0], strict=True)
        axes.plot(times, values, color=color, linewidth=1.2)
        axes.fill_between(times, values, min(0.0, *values), color=color, alpha=0.2, linewidth=0)
        axes.set_xlim(self._span.start, self._span.end)
        axes.set_ylim(min(0.0, *values), max(values) * 1.1 or 1.0)

    def _table(self, panel: dict[str, Any], x: float, y: float, w: float, h: float) -> None:
        self._frame(panel, x, y, w, h)
        (names,) = (t["options"]["include"]["names"] for t in panel["transformations"])
        for place, name in enumerate(names):
            left = x + 10 + place * (w - 20) / len(names)
            self._text(left, y + 46, name, 9, "#6e9fff")
            for line, series in enumerate(self._answers[panel["id"]]):
                text = series.labels[name].removesuffix("ExecutionProvider")
                self._text(left, y + 74 + 24 * line, text, 9, TEXT)

    def _timeseries(self, panel: dict[str, Any], x: float, y: float, w: float, h: float) -> None:
        self._frame(panel, x, y, w, h)
        answers = [series for series in self._answers[panel["id"]] if series.points]
        if not answers:
            return self._nothing(x, y, w, h)
        defaults = panel["fieldConfig"]["defaults"]
        lines, fill = defaults["custom"]["lineWidth"], defaults["custom"]["fillOpacity"] / 100
        stacked = defaults["custom"]["stacking"]["mode"] == "normal"
        legend = _lines([series.name for series in answers], w - 24)
        axes = self._axes(x + 78, y + 36, w - 112, h - 76 - LEGEND * len(legend))
        step = self._span.scrape_seconds
        grid = np.arange(self._span.start, self._span.end + step / 2, step)
        times = [datetime.fromtimestamp(t) for t in grid]
        below, highest = np.zeros(len(grid)), 0.0
        for number, series in enumerate(answers):
            values = np.full(len(grid), np.nan)
            for t, value in series.points:
                values[round((t - self._span.start) / step)] = value
            if stacked:
                values = below + values
            color = LINES[number % len(LINES)]
            axes.plot(times, values, color=color, linewidth=lines * 0.75, label=series.name)
            axes.fill_between(times, values, below, color=color, alpha=fill, linewidth=0)
            highest = max(highest, float(np.nanmax(values)))
            if stacked:
                below = np.where(np.isnan(values), below, values)
        axes.set_xlim(times[0], times[-1])
        axes.set_ylim(defaults["min"], 1.1 * highest or 1.0)
        unit = defaults["unit"]
        if unit == "bytes" and highest:
            axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(highest / 5))))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: with_unit(value, unit)))
        axes.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=8))
        axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S"))
        axes.grid(color=GRID, linewidth=0.8)
        axes.tick_params(colors=DIM, labelsize=8.5, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for line, entries in enumerate(legend):
            for number, left, name in entries:
                top = y + h - 16 - LEGEND * (len(legend) - 1 - line)
                self._text(x + 14 + left, top, "\u2501", 9, LINES[number % len(LINES)])
                self._text(x + 31 + left, top, name, 8.5, TEXT)


def _lines(names: list[str], width: float) -> list[list[tuple[int, float, str]]]:
    """A legend in lines of entries: number, place in its line, name; of methods the last part."""
    lines: list[list[tuple[int, float, str]]] = [[]]
    left = 0.0
    for number, name in enumerate(names):
        name = name.rpartition("/")[2]
        wide = 34 + sum(7.8 if letter.isupper() or letter == "_" else 6.6 for letter in name)
        if left and left + wide > width:
            lines.append([])
            left = 0.0
        lines[-1].append((number, left, name))
        left += wide
    return lines


def picture(dashboard: dict[str, Any], answers: dict[int, list[Series]], span: Span) -> Image.Image:
    """The dashboard with its panels' answers, by their ids."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        buffer = io.BytesIO()
        Page(dashboard, answers, span).figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def asked(prometheus: Prometheus, dashboard: dict[str, Any], span: Span) -> dict[int, list[Series]]:
    """What each panel's queries give, by its id, with *All* chosen for every variable."""
    variables = {name: every for name, (every, _) in prometheus.variables(dashboard).items()}
    return {
        panel["id"]: [
            series
            for target in panel["targets"]
            for series in prometheus.answer(target, variables, span)
        ]
        for panel in panels(dashboard)
    }


def frames() -> dict[str, list[bytes]]:
    """What each camera sends: faces, an empty frame now and then, a picture that is cut off."""
    random = np.random.default_rng(3)
    codec = Codec.load()
    pictures = [as_frame(synthetic_face(codec, random), random) for _ in range(FACES)]
    buffer = io.BytesIO()
    Image.new("RGB", (960, 720), (120, 124, 130)).save(buffer, "JPEG")
    sent = {}
    for number, camera in enumerate(CAMERAS):
        own = pictures[number :: len(CAMERAS)]
        sent[camera] = [*own, buffer.getvalue(), *own, own[0]]
    sent[CAMERAS[0]].append(pictures[0][:20_000])
    sent[CAMERAS[1]].append(demo_photograph().read_bytes())
    return sent


async def main(to: Path) -> None:
    """Run the services under some use for a while, then draw each dashboard."""
    to.mkdir(parents=True, exist_ok=True)
    cameras, looked_for = frames(), demo_photograph().read_bytes()
    with tempfile.TemporaryDirectory(prefix="sfic-dashboards-") as folder:
        async with (
            watched_services(Path(folder), SCRAPE_SECONDS) as (at, prometheus),
            in_use(at, cameras, looked_for, FRAME_SECONDS, LOOK_SECONDS),
        ):
            start = time.time()
            await asyncio.sleep(RUN_SECONDS)
            span = Span(round(start), round(start + RUN_SECONDS), SCRAPE_SECONDS)
            found = {}
            for path in DASHBOARDS:
                dashboard = json.loads(path.read_text())
                found[path.stem] = (dashboard, asked(prometheus, dashboard, span))
    for name, (dashboard, answers) in found.items():
        path = to / f"{name}.png"
        few = picture(dashboard, answers, span).quantize(128, dither=Image.Dither.NONE)
        few.save(path, "PNG", optimize=True)
        print(f"wrote {path} ({path.stat().st_size} bytes)")


if __name__ == "__main__":
    here = Path(__file__).parent / "images" / "dashboards"
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else here))
