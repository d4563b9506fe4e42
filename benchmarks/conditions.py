"""Identity by capture condition and by demographic group, by a judge that no training has seen.

    python -m benchmarks.conditions [--rate 5] [--effort N] [--layers enhanced] [--limit N]

What a camera does to a face is done to the encoder's input; the decoded face is compared with the
clean original (`mobileface`). Yaw, glasses and hats are as the pictures have them: pose by the face
mesh, the rest by the parsing masks of CelebA-HQ. Demographic groups are those of the London set and
of MEBeauty, as their index names them.

A row of five pictures or more is flagged where the whole 95 % interval of its mean lies more than
10 % below the mean of the clean pictures of the same set. Needs the face sets (`SFIC_SHARED`); only
`dev` rows are read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console

from benchmarks.report import DOCS, RESULTS, markdown_table, write_markdown, write_result
from sfic.cli.evaluate import show_progress
from sfic.codec import Codec
from sfic.detection import FaceDetector
from sfic.evaluation.codecs import scale
from sfic.evaluation.curves import interval
from sfic.evaluation.judges import WORKING_SIZE, Judges
from sfic.face_score import pose_of
from sfic.layers import LAYERS, as_layer
from training.data import FaceRow, load_rgb, read_index, shared_dir

Rgb = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

# Side of the face, as the detector boxes it, over the side of an FFHQ-aligned crop.
FACE_IN_CROP = 0.595
BELOW = 0.9
FEWEST = 5  # pictures from which a row can be flagged: fewer have no interval to speak of
YAW_EDGES = (0.0, 10.0, 20.0, 30.0, 90.0)
# CelebAMask-HQ's numbers.
GLASSES, HAT = 3, 14
WORN = 0.002  # part of the picture from which a mask counts
REPLICATES = 2000


def jpeg(crop: Rgb, quality: int = 30) -> Rgb:
    """As a camera's JPEG."""
    _, coded = cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def blur(crop: Rgb) -> Rgb:
    """Out of focus: a Gaussian of 1 % of the crop's side."""
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), 0.01 * crop.shape[0]), np.uint8)


def noise(crop: Rgb) -> Rgb:
    """A Gaussian of 20 of 255."""
    rng = np.random.default_rng(0)
    return np.clip(crop + rng.normal(0, 20, crop.shape), 0, 255).astype(np.uint8)


def dim(crop: Rgb, share: float = 1 / 8) -> Rgb:
    """So much of the light, then noise of 4 of 255."""
    linear = (crop / 255.0) ** 2.2 * share
    rng = np.random.default_rng(0)
    return np.clip(255 * linear ** (1 / 2.2) + rng.normal(0, 4, crop.shape), 0, 255).astype(
        np.uint8
    )


def small(crop: Rgb, face: int) -> Rgb:
    """A face of so many pixels."""
    side = round(face / FACE_IN_CROP)
    return np.asarray(cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


CONDITIONS: dict[str, Callable[[Rgb], Rgb]] = {
    "clean": lambda crop: crop,
    "JPEG, quality 30": jpeg,
    "blur": blur,
    "noise": noise,
    "half the light": lambda crop: dim(crop, 1 / 2),
    "a quarter of the light": lambda crop: dim(crop, 1 / 4),
    "an eighth of the light": dim,
    "a sixteenth of the light": lambda crop: dim(crop, 1 / 16),
    "face of 64 px": lambda crop: small(crop, 64),
    "face of 48 px": lambda crop: small(crop, 48),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: pictures of a set that share something."""

    set: str
    what: str
    identity: Floats  # [n]
    bytes: Floats  # [n]
    uncoded: Floats  # [n] identity of what the camera gave
    brightened: Floats  # [n] 1: coded brighter than the camera gave it


class Measure:
    """Encodes what a camera gave, decodes, and compares with the clean original."""

    def __init__(self, codec: Codec, judges: Judges, rate: int, effort: int, layers: str) -> None:
        self._codec, self._judges = codec, judges
        self._rate, self._effort, self._layers = rate, effort, as_layer(layers)

    def identity(
        self, original: Rgb, conditions: Sequence[Callable[[Rgb], Rgb]]
    ) -> list[tuple[float, int, float, bool]]:
        """Of one original under each condition: cosine, bytes, cosine before coding, brightened."""
        decoded, sizes, given, brightened = [], [], [], []
        for change in conditions:
            crop = change(original)
            given.append(scale(crop, WORKING_SIZE))
            face = self._codec.encode(crop, self._rate, self._effort, brighten=True)
            face = face.up_to(self._layers)
            decoded.append(self._codec.decode(face, self._layers, WORKING_SIZE))
            sizes.append(face.total_bytes)
            brightened.append(face.brightened > 1.0)
        place = self._judges.place(original[None])
        reference = self._judges.identity(original[None], place)[0]
        cosines, before = (
            [float(self._judges.identity(p[None], place)[0] @ reference) for p in pictures]
            for pictures in (decoded, given)
        )
        return list(zip(cosines, sizes, before, brightened, strict=True))


def by_condition(rows: Sequence[FaceRow], measure: Measure, tell: Tell) -> Iterator[Row]:
    """Each condition over the same pictures."""
    found = []
    for row in tell(rows, "conditions"):
        crop = load_rgb(row.path, WORKING_SIZE)
        found.append(measure.identity(crop, list(CONDITIONS.values())))
    table = np.array(found, np.float64)  # [pictures, conditions, 4]
    for c, name in enumerate(CONDITIONS):
        yield Row(rows[0].set, name, *table[:, c].T)


def by_label(
    rows: Sequence[FaceRow],
    labels: Callable[[FaceRow, Rgb], Sequence[str]],
    measure: Measure,
    tell: Tell,
) -> Iterator[Row]:
    """Clean pictures of one set: all of them, then those that share a label."""
    found, groups = [], list[Sequence[str]]()
    for row in tell(rows, rows[0].set):
        crop = load_rgb(row.path, WORKING_SIZE)
        found += measure.identity(crop, [CONDITIONS["clean"]])
        groups.append(labels(row, crop))
    table = np.array(found, np.float64)  # [pictures, 4]
    yield Row(rows[0].set, "clean", *table.T)
    for name in sorted({label for group in groups for label in group}):
        chosen = np.array([name in group for group in groups])
        yield Row(rows[0].set, name, *table[chosen].T)


Tell = Callable[[Sequence[FaceRow], str], Iterator[FaceRow]]


def worn(row: FaceRow, crop: Rgb) -> list[str]:
    """Glasses and hats by the parsing mask."""
    folder = shared_dir() / "data" / "faces" / "celebahq512_masks"
    mask = np.asarray(Image.open(folder / f"{row.path.stem}.png"))
    labels = [n for n, c in (("glasses", GLASSES), ("hat", HAT)) if (mask == c).mean() > WORN]
    return labels or ["neither glasses nor hat"]


def yaw_bin(detector: FaceDetector) -> Callable[[FaceRow, Rgb], list[str]]:
    """The yaw's size, in bins, by the face mesh."""

    def label(row: FaceRow, crop: Rgb) -> list[str]:
        faces = detector.detect(crop, max_faces=1)
        if not faces:
            return ["yaw unknown: no face found"]
        yaw = min(abs(pose_of(faces[0].landmarks).yaw), 89.9)
        bin_ = int(np.searchsorted(YAW_EDGES, yaw, side="right"))
        return [f"yaw {YAW_EDGES[bin_ - 1]:.0f} to {YAW_EDGES[bin_]:.0f} degrees"]

    return label


def demographic(row: FaceRow, crop: Rgb) -> list[str]:
    """Group and gender as the index names them."""
    parts = (("demographic group", row.fields["group"]), ("gender", row.fields["gender"]))
    return [f"{kind}: {value.replace('_', ' ')}" for kind, value in parts if value]


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table as plain numbers, flags included."""
    clean = {row.set: float(row.identity.mean()) for row in rows if row.what == "clean"}
    stated = []
    rng = np.random.default_rng(0)
    for row in rows:
        mean, count = float(row.identity.mean()), len(row.identity)
        draws = row.identity[rng.integers(0, count, (REPLICATES, count))].mean(axis=1)
        low, high = interval(draws, mean)
        stated.append(
            {
                "set": row.set,
                "what": row.what,
                "pictures": count,
                "bytes": round(float(row.bytes.mean()), 1),
                "identity": round(mean, 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "of_clean": round(mean / clean[row.set], 4),
                "uncoded": round(float(row.uncoded.mean()), 4),
                "brightened": int(row.brightened.sum()),
                "flag": count >= FEWEST and high < BELOW * clean[row.set],
            }
        )
    return stated


def table(stated: Sequence[dict[str, Any]]) -> str:
    """Markdown of `figures`."""
    heads = [
        "set",
        "condition or group",
        "pictures",
        "bytes",
        "identity (95 %)",
        "of the set's",
        "uncoded",
        "brightened",
        "flag",
    ]
    lines = [
        [
            row["set"],
            row["what"],
            str(row["pictures"]),
            f"{row['bytes']:.0f}",
            f"{row['identity']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
            f"{100 * row['of_clean']:.0f} %",
            f"{row['uncoded']:.3f}",
            str(row["brightened"]),
            "**more than 10 % below**" if row["flag"] else "",
        ]
        for row in stated
    ]
    return markdown_table(heads, lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=5)
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--layers", choices=LAYERS, default="enhanced")
    parser.add_argument("--limit", type=int, default=0, help="so many faces of each set")
    parser.add_argument("--out", type=Path, help="folder for everything, in place of the usual")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    codec = Codec.load(threads=args.threads)
    measure = Measure(codec, Judges(args.threads), args.rate, args.effort, args.layers)
    console = Console()

    def dev(name: str) -> list[FaceRow]:
        return read_index("dev", (name,))[: args.limit or None]

    with show_progress(console) as progress:

        def tell(rows: Sequence[FaceRow], what: str) -> Iterator[FaceRow]:
            for done, row in enumerate(rows):
                progress(what, done, len(rows))
                yield row

        rows = [
            *by_condition(dev("celebahq512png"), measure, tell),
            *by_label(dev("celebahq512"), worn, measure, tell),
            *by_label(dev("mebeauty256"), yaw_and_demographic(FaceDetector()), measure, tell),
            *by_label(dev("london1024"), demographic, measure, tell),
        ]
    stated = figures(rows)
    name = f"conditions-rate-{args.rate}-effort-{args.effort}-{args.layers}"
    facts = {
        "model_bundle": codec.model_bundle,
        "rate": args.rate,
        "effort": args.effort,
        "layers": args.layers,
        "rows": stated,
    }
    write_result(name, facts, args.out or RESULTS)
    flagged = [f"{row['set']}: {row['what']}" for row in stated if row["flag"]]
    words = (
        f"Identity cosine (`mobileface`) of the decoded face and the clean original; rate "
        f"{args.rate}, effort {args.effort}, layers up to {args.layers}, model bundle "
        f"`{codec.model_bundle}`. Flagged: "
        + ("; ".join(flagged) if flagged else "nothing")
        + ". `uncoded`: the same of what the camera gave, before coding. A small face is one whose "
        "detector box has so many pixels; the source pictures of MEBeauty and the London set "
        "differ, so groups are compared within their set only."
    )
    page = write_markdown(
        (args.out or DOCS) / f"{name}.md",
        "Conditions and demographic groups",
        [words, table(stated)],
    )
    console.print(str(page))


def yaw_and_demographic(detector: FaceDetector) -> Callable[[FaceRow, Rgb], list[str]]:
    """Labels of pictures in the wild."""
    yaw = yaw_bin(detector)
    return lambda row, crop: [*yaw(row, crop), *demographic(row, crop)]


if __name__ == "__main__":
    main()
