"""Quality per byte beside VVC, by judges that no training has seen.

    python -m benchmarks.quality [--rates 1 3 5 7 9] [--limit N] [--sheet DIR]

Codes the lossless CelebA-HQ dev pictures at each rate, reconstructs from basic, basic+middle and
all layers, and judges each against the original at 512 px; then VVC's streams of the same pictures,
by the same judges in the same run. Bytes are packets as sent, headers included; VVC counts without
its headers, at the best it reaches with the same mean bytes, interpolated. Needs the face sets
(`SFIC_SHARED`) and the judges (`python -m training.convert_judges`).
"""

from __future__ import annotations

import argparse
import os
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.report import write_result
from sfic.codec import Codec
from sfic.evaluation import vvc
from sfic.evaluation.judges import Judges
from sfic.layers import LAYERS
from training.data import load_rgb, read_index, shared_dir

Rgb = npt.NDArray[np.uint8]
JUDGED_AT = 512
MOST_BYTES = 1700
METRICS = ("identity", "vgg", "landmarks", "psnr")


def shrink(picture: Rgb) -> Rgb:
    """To the size that judges see."""
    size = (JUDGED_AT, JUDGED_AT)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def confidence(values: npt.NDArray[np.floating[Any]], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (2000, len(values))).mean(axis=1)
    return round(float(np.quantile(means, 0.025)), 3), round(float(np.quantile(means, 0.975)), 3)


def anchor_points(names: list[str], originals: Rgb, judges: Judges) -> list[vvc.Point]:
    """VVC at each of its settings under MOST_BYTES, over the pictures `names`."""
    chosen = [s for s in vvc.read_streams(shared_dir() / "data" / "vvc") if s.image in names]
    settings = sorted(chosen, key=lambda s: (s.size, s.qp))
    references = dict(zip(names, originals, strict=True))
    points = []
    groups = [list(g) for _, g in groupby(settings, key=lambda s: (s.size, s.qp))]
    for group in track(groups, "VVC"):
        if np.mean([s.bytes_vcl for s in group]) <= MOST_BYTES:
            points.append(vvc.judge(group, references, judges))
    return points


def contact_sheet(folder: Path, rows: list[list[Rgb]], name: str) -> None:
    """Rows of pictures as one PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    small = [[cv2.resize(p, (224, 224), interpolation=cv2.INTER_AREA) for p in row] for row in rows]
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in small])
    cv2.imwrite(str(folder / f"{name}.png"), sheet[..., ::-1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=[1, 3, 5, 7, 9])
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write contact sheets into this folder")
    parser.add_argument("--no-vvc", action="store_true", help="leave the anchor out")
    args = parser.parse_args()
    threads = os.cpu_count() or 1
    codec, judges, console = Codec.load(), Judges(threads), Console()
    rows = read_index("dev", ("celebahq512png",))[: args.limit or None]
    originals = np.stack([load_rgb(row.path, JUDGED_AT) for row in rows])
    place = judges.place(originals)
    figures: list[dict[str, Any]] = []
    for rate in args.rates:
        faces = [
            codec.encode(crop, rate, args.effort)
            for crop in track(originals, f"rate {rate}: encoding", console=console)
        ]
        sheet = [[crop] for crop in originals[:16]]
        for layer in LAYERS:
            decoded = np.stack(
                [
                    shrink(codec.decode(face, layer))
                    for face in track(faces, f"rate {rate}: {layer}", console=console)
                ]
            )
            for row, picture in zip(sheet, decoded, strict=False):
                row.append(picture)
            sizes = np.array([face.up_to(layer).total_bytes for face in faces])
            result = judges.compare(originals, decoded, place)
            figures.append(
                {
                    "rate": rate,
                    "layers": layer,
                    "bytes": round(float(sizes.mean()), 1),
                    "bytes_largest": int(sizes.max()),
                    "identity": round(float(result.identity.mean()), 4),
                    "identity_95": confidence(result.identity),
                    "identity_dlib": round(float(result.identity_dlib.mean()), 4),
                    "vgg": round(float(result.vgg.mean()), 4),
                    "landmarks": round(float(np.median(result.landmarks)), 3),
                    "psnr": round(float(result.psnr.mean()), 2),
                    "face_found": round(float(result.found.mean()), 3),
                }
            )
        if args.sheet:
            contact_sheet(args.sheet, sheet, f"rate-{rate}-effort-{args.effort}")
    names = [row.path.name for row in rows]
    points = [] if args.no_vvc else anchor_points(names, originals, judges)
    table = Table("rate", "layers", "bytes", *METRICS, "face found")
    for entry in figures:
        cells = []
        for metric in METRICS:
            entry[f"vvc_{metric}"] = best = vvc.best_at(points, metric, entry["bytes"])
            cells.append(f"{entry[metric]:.3f} ({'-' if best is None else f'{best:.3f}'})")
        found = f"{entry['face_found']:.2f}"
        table.add_row(str(entry["rate"]), entry["layers"], f"{entry['bytes']:.0f}", *cells, found)
    console.print(table)
    console.print("in brackets: VVC at the same bytes, - where it has no point")
    anchor = [
        {"size": p.size, "qp": p.qp, "bytes": round(p.bytes, 1)}
        | {k: round(v, 4) for k, v in p.values.items()}
        for p in points
    ]
    result_file = write_result(
        f"quality-effort-{args.effort}",
        {"model_bundle": codec.model_bundle, "pictures": len(rows), "rows": figures, "vvc": anchor},
    )
    console.print(str(result_file))


if __name__ == "__main__":
    main()
