"""`python -m benchmarks`: speed in one table, with plots; `--all`: the face sets, too.

Belongs here: which benchmarks there are, the goals of speed, and the page docs/performance.md.
Benchmarks run one by one, so that nothing is measured beside another. The others take far longer:
only with `--all`; those that need the face sets (`SFIC_SHARED`) are left out, with a word, where
these are not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import DOCS, RESULTS, markdown_table

PAGE = DOCS.parent / "performance.md"
MARK = "<!-- The rest is written by `python -m benchmarks`. -->"
CHANGE = 0.1  # of a figure, from which it counts as changed


@dataclass(frozen=True)
class Row:
    """One goal. `theirs`: what ours is divided by; without `against` the limit is of ours."""

    path: str
    unit: str
    ours: float | None
    against: str
    theirs: float | None
    limit: float
    least: bool = False  # the limit is the least, not the most

    @property
    def value(self) -> float | None:
        """What the limit is of; None when it was not measured."""
        if self.ours is None or (self.against and not self.theirs):
            return None
        return self.ours / self.theirs if self.theirs else self.ours

    def cells(self) -> list[str]:
        """As a row of the table."""
        if self.value is None:
            met = "not measured"
        else:
            reached = self.value >= self.limit if self.least else self.value <= self.limit
            met = "yes" if reached else "no"
        beside = f"{self.against}: {_short(self.theirs)} {self.unit}" if self.against else ""
        ratio = _short(self.value) if self.against else ""
        sign = ">=" if self.least else "<="
        return [
            self.path, f"{_short(self.ours)} {self.unit}", beside, ratio,
            f"{sign} {_short(self.limit)}", met,
        ]  # fmt: skip


def rows(speed: Mapping[str, Any], services: Mapping[str, Any]) -> list[Row]:
    """The goals and what was measured, from the figures of both benchmarks, as far as there are."""
    ms, s = speed.get("ms", {}), services
    faces = {int(n): t for n, t in speed.get("faces_in_frame_ms", {}).items()}
    further = (faces[32] - faces[1]) / 31 if {1, 32} <= set(faces) else None
    one_camera = s.get("cameras_frames_a_second", {}).get("1")
    frame = 1000 / one_camera if one_camera else None
    full, crop = ms.get("decode 1024"), ms.get("encode a crop")
    one, many = s.get("one_after_another_seconds"), s.get("at_once_seconds")
    tail, mean = s.get("at_once_p99_seconds"), s.get("at_once_mean_seconds")
    edge, decoder = (s.get(f"{name}_start_seconds") for name in ("edge", "decoder"))
    edge_first, decoder_first = (
        s.get(f"{name}_first_start_seconds") for name in ("edge", "decoder")
    )
    edge_memory, decoder_memory = (s.get(f"{name}_memory_mb") for name in ("edge", "decoder"))
    share = speed.get("roofline", {}).get("1024", {}).get("share")
    return [
        Row("all layers to 1024", "ms", full, "OpenVINO, its IR", ms.get("OpenVINO 1024"), 0.75),
        Row("all layers to 512", "ms", ms.get("decode 512"), "ours to 1024", full, 0.55),
        Row("all layers to 256", "ms", ms.get("decode 256"), "ours to 1024", full, 0.25),
        Row("basic preview at 128, one core", "ms", ms.get("preview 128, one core"), "", None, 25),
        Row("aligned crop to packets", "ms", crop, "", None, 33.3),
        Row("aligned crop to packets", "ms", crop, "AVIF, smallest", ms.get("AVIF"), 1),
        Row("aligned crop to packets", "ms", crop, "VVC, smallest", None, 1),
        Row("720p JPEG frame to stored packets", "ms", frame, "", None, 66.7),
        Row("each further face of a frame", "ms", further, "", None, 35),
        Row("entropy coding, both ways", "ms", ms.get("entropy coding both ways"), "", None, 5),
        Row("16 requests one after another", "s", one, "at once", many, 1.5, least=True),
        Row("slowest of the 16 at once", "s", tail, "their mean", mean, 2),
        Row("edge: start to first face", "s", edge, "", None, 2),
        Row("decoder: start to first face", "s", decoder, "", None, 2),
        Row("edge: the first start ever, networks compiled", "s", edge_first, "", None, 2),
        Row("decoder: the same", "s", decoder_first, "", None, 2),
        Row("edge: resident memory", "MB", edge_memory, "", None, 400),
        Row("decoder: resident memory", "MB", decoder_memory, "", None, 700),
        Row("decoder's share of the roofline", "", share, "", None, 0.6, least=True),
    ]


def changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> list[str]:
    """One line for each figure that is a tenth or more from what it was."""
    lines = []
    for name, value in after.items():
        old = before.get(name)
        where = f"{path}{name}"
        if isinstance(value, Mapping):
            lines += changes(old if isinstance(old, Mapping) else {}, value, f"{where}: ")
        elif isinstance(value, float) and old and abs(value / old - 1) >= CHANGE:
            lines.append(f"{where}: {old} -> {value} ({value / old - 1:+.0%})")
    return lines


def plots(speed: Mapping[str, Any], services: Mapping[str, Any], path: Path) -> None:
    """Cost over work, four drawings in one file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    prefix = "decode "
    decode = {n.removeprefix(prefix): x for n, x in speed["ms"].items() if n.startswith(prefix)}
    drawings = (
        ("faces in a frame", "ms a frame", speed["faces_in_frame_ms"]),
        ("cameras", "frames a second", services.get("cameras_frames_a_second", {})),
        ("side of the picture", "ms a face", decode),
        ("faces in a batch of machine tasks", "ms a batch", speed["machine_tasks_batch_ms"]),
    )
    figure, axes = plt.subplots(2, 2, figsize=(9, 6))
    for axis, (work, cost, values) in zip(axes.flat, drawings, strict=True):
        axis.plot([int(n) for n in values], list(values.values()), marker="o", color="teal")
        axis.set_xlabel(work)
        axis.set_ylabel(cost)
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {"figures": {}}


def _run(command: Sequence[str]) -> None:
    print(f"== python -m {' '.join(command)}", flush=True)
    # As the services do: numpy's matrices are small here, and its threads only get in the way.
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
    done = subprocess.run([sys.executable, "-m", *command], env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def report() -> None:
    """Print the table of the results that are there, and write it into the page, with the plots."""
    speed, services = _read("speed"), _read("speed_services")
    heads = ("path", "ours", "beside", "ratio", "limit", "met")
    cells = [row.cells() for row in rows(speed["figures"], services["figures"])]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in (heads, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    plots(speed["figures"], services["figures"], DOCS / "speed.svg")
    machine, peak, ms = speed["machine"], speed["figures"]["peak"], speed["figures"]["ms"]
    in_runtime = [
        f"{name.removeprefix('ONNX Runtime, ')} {value:.0f} ms (here {ms[name.split(', ')[1]]:.0f})"
        for name, value in ms.items()
        if name.startswith("ONNX Runtime, ")
    ]
    roofline = [
        [
            size,
            f"{of['multiply_adds'] / 1e9:.2f} G",
            f"{of['bytes'] / 1e6:.0f} MB",
            f"{of['least_ms']} ms",
            f"{speed['figures']['ms'][f'decode {size}']} ms",
            f"{of['share']:.0%}",
        ]
        for size, of in speed["figures"]["roofline"].items()
    ]
    parts = [
        PAGE.read_text().split(MARK)[0].rstrip(),
        MARK,
        "## Measured",
        f"{speed['date']}, {speed['figures']['cores']} cores of {machine['processor']}, networks "
        f"on {speed['figures']['provider']} in {speed['figures']['arithmetic']}; ONNX "
        f"Runtime {speed['versions'].get('onnxruntime', '-')}, OpenVINO "
        f"{speed['versions'].get('openvino', '-')}; medians of actions run in turns. "
        "`benchmarks/results/speed.json` and `speed_services.json` have all figures.",
        markdown_table(heads, cells),
        *([f"The same with ONNX Runtime: {', '.join(in_runtime)}."] if in_runtime else []),
        "![cost over work](figures/speed.svg)",
        "### Roofline of decoding",
        f"This machine reaches {peak['multiply_adds_a_second'] / 1e9:.0f} G multiply-adds a second "
        f"in a dense product of {speed['figures']['arithmetic']} and "
        f"{peak['bytes_a_second'] / 1e9:.1f} GB a second in copies. The "
        "least time is the larger of work and traffic at those rates, every layer's features read "
        "and written once; the share is of the whole decoding, entropy coding included.",
        markdown_table(("side", "multiply-adds", "bytes", "least", "ours", "share"), roofline),
    ]
    on_gpu = speed["figures"].get("pictures_batch_ms")
    if on_gpu:
        cells = [[n, f"{x} ms", f"{x / int(n):.1f} ms"] for n, x in on_gpu.items()]
        heads_of = ("pictures of the largest size at once", "time", "for each")
        parts += ["### Synthesis on the GPU", markdown_table(heads_of, cells)]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="also what needs the face sets")
    parser.add_argument("--report", action="store_true", help="only the table of results there are")
    args = parser.parse_args()
    if not args.report:
        for name in ("speed", "speed_services"):
            before = _read(name)["figures"]
            _run([f"benchmarks.{name}", "--cores", str(args.cores)])
            for line in changes(before, _read(name)["figures"]):
                print(f"changed: {line}")
    report()
    if args.all:
        from training.data import shared_dir

        names = ["analytics_throughput", "search", "load"]
        if (shared_dir() / "data" / "faces" / "index.csv").is_file():
            names += ["quality", "effort", "conditions", "tasks", "bit_exactness"]
        else:
            print("no face sets: no quality, conditions or tasks are measured", file=sys.stderr)
        for name in names:
            _run([f"benchmarks.{name}"])


if __name__ == "__main__":
    main()
