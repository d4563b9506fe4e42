"""What `sfic demo` leaves behind: the table on the terminal and the pictures in `out/`.

What belongs here: showing. Getting the faces is `sfic.demo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from sfic.alignment import paste_back
from sfic.exposure import darken
from sfic.face import brightened
from sfic.layers import LAYERS
from sfic.pictures import read_picture
from sfic.sampling import sample_square

if TYPE_CHECKING:
    from sfic.demo import DemoFace, DemoFrame

__all__ = ["print_table", "write_pictures"]

_SIDE = 1024
_CAPTION = 150
_GAP = 16
_ROWS = 8
_BITS_PER_PIXEL = 8 / _SIDE**2


def write_pictures(frames: Sequence[DemoFrame], output: Path) -> list[Path]:
    """Write every face's crop and reconstructions, the comparison, and the frames with faces back.

    One face: straight into `output`; several: a folder for each, PICTURE-N. Returns what a reader
    wants to open first.
    """
    output.mkdir(parents=True, exist_ok=True)
    several = sum(len(frame.faces) for frame in frames) > 1
    rows: list[Image.Image] = []
    written: list[Path] = []
    for frame in frames:
        picture = read_picture(frame.path)
        pasted = picture
        for number, face in enumerate(frame.faces, 1):
            folder = output / f"{frame.path.stem}-{number}" if several else output
            folder.mkdir(exist_ok=True)
            original = sample_square(picture, face.placement.affine, _SIDE, soft_border=True)
            decoded: dict[str, NDArray[np.uint8]] = {
                name: read_picture(face.levels[name].picture) for name in LAYERS
            }
            for name, pixels in {"original": original, **decoded}.items():
                _save(Image.fromarray(pixels), folder / f"{name}.png")
            dark = darken(decoded[LAYERS[-1]], brightened(face.info))
            pasted = paste_back(pasted, dark, face.placement)
            if len(rows) < _ROWS:
                rows.append(_row(original, decoded, face))
        if frame.faces:
            name = f"{frame.path.stem}-frame.png" if len(frames) > 1 else "frame.png"
            _save(Image.fromarray(pasted), output / name)
            written.append(output / name)
    comparison = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        comparison.paste(row, (0, number * row.height))
    _save(comparison, output / "comparison.png")
    return [output / "comparison.png", *written]


def _save(image: Image.Image, path: Path) -> None:
    """As PNG, compressed lightly: the usual level takes five times as long for a tenth less."""
    image.save(path, compress_level=1)


def print_table(console: Console, frames: Sequence[DemoFrame], start_seconds: float) -> None:
    """Print what was sent, seen and rebuilt of every face, and how long it took."""
    for frame in frames:
        for number, face in enumerate(frame.faces, 1):
            console.print(_layers_table(f"{frame.path.name}, face {number}", face))
            console.print(_in_words(face))
        below = f", {frame.faces_below_gate} below the face-score gate"
        console.print(
            f"{frame.path.name}: found and encoded {len(frame.faces)}"
            f"{below if frame.faces_below_gate else ''} in {frame.edge_ms:.0f} ms"
        )
    console.print(f"services were up after {start_seconds:.1f} s")


def _layers_table(title: str, face: DemoFace) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("layer", no_wrap=True)
    for heading in ("bytes", "in all", "bpp 1024²", "fetch ms", "decode ms", "synthesis ms"):
        table.add_column(heading, justify="right")
    table.add_column("ran on", no_wrap=True)
    total = 0
    for name, size in zip(LAYERS, face.info.layer_bytes, strict=False):
        total += size
        level = face.levels[name]
        table.add_row(
            name,
            str(size),
            str(total),
            f"{total * _BITS_PER_PIXEL:.5f}",
            f"{level.fetch_ms:.0f}",
            f"{level.decode_ms:.0f}",
            f"{level.synthesis_ms:.0f}",
            level.provider.removesuffix("ExecutionProvider"),
        )
    return table


def _in_words(face: DemoFace) -> str:
    """What analytics read from the basic layer."""
    seen = face.analysis
    if seen is None:
        return "analytics said nothing"
    gender = "male" if seen.gender.value >= 0.5 else "female"
    return (
        f"from the basic layer alone: {gender} ({seen.gender.confidence:.2f}), age "
        f"{seen.age.value:.0f} ({seen.age.confidence:.2f}), smile {seen.smile.value:.2f} "
        f"({seen.smile.confidence:.2f}), yaw {seen.yaw.value:+.0f}°, pitch "
        f"{seen.pitch.value:+.0f}°, roll {seen.roll.value:+.0f}°; "
        f"{len(seen.embedding)}-d identity; after {face.analysis_ms:.0f} ms"
    )


def _row(
    original: NDArray[np.uint8], decoded: dict[str, NDArray[np.uint8]], face: DemoFace
) -> Image.Image:
    """Original and the three levels side by side, each with its caption."""
    sizes = np.cumsum(face.info.layer_bytes)
    captions = [("original", f"{face.placement.source_size:.0f} px wide in the photograph")]
    factor = brightened(face.info)
    if factor > 1.0:
        captions[0] = ("original", f"{captions[0][1]}; dim: coded {factor:.1f} times brighter")
    for name, plus, total in zip(LAYERS, ("", "+ middle", "+ enhanced"), sizes, strict=True):
        captions.append((plus or name, f"{total} bytes, {total * _BITS_PER_PIXEL:.4f} bpp"))
    panels = [original, *(decoded[name] for name in LAYERS)]
    width = len(panels) * _SIDE + (len(panels) + 1) * _GAP
    row = Image.new("RGB", (width, _SIDE + _CAPTION + _GAP), "white")
    draw = ImageDraw.Draw(row)
    large, small = ImageFont.load_default(56), ImageFont.load_default(40)
    for number, (pixels, (title, detail)) in enumerate(zip(panels, captions, strict=True)):
        left = _GAP + number * (_SIDE + _GAP)
        row.paste(Image.fromarray(pixels).resize((_SIDE, _SIDE)), (left, _GAP))
        draw.text((left + 8, _SIDE + _GAP + 14), title, fill="black", font=large)
        draw.text((left + 8, _SIDE + _GAP + 84), detail, fill=(90, 90, 90), font=small)
    return row
