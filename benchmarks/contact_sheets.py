"""Contact sheets for the docs: synthetic faces, another codec at equal bytes, and our three layers.

    python -m benchmarks.contact_sheets [--rates 1 3 5 7] [--faces 16] [--beside x265 avif]

Faces are drawn from the generator, so they are nobody's and may be shown; they flatter a codec
with the same generator inside: a sheet shows what goes wrong, not how well it goes. For real faces
beside VVC see `benchmarks.quality --sheet`. Of another codec's settings each face has the
one of highest PSNR among those of at most our bytes (its smallest, when none is). Needs the train
extra and the generator's cache (`python -m training.generator`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from benchmarks.report import DOCS
from sfic.codec import Codec
from sfic.evaluation.codecs import Coded, Coder, PictureFormat, VideoCodec, scale
from sfic.evaluation.dataset import Sample
from sfic.evaluation.judges import WORKING_SIZE, psnr256
from sfic.layers import LAYERS
from training.codec_checkpoint import load_generator
from training.codec_data import synthetic_set

Rgb = npt.NDArray[np.uint8]

SEED = 2026  # other faces than those of training
CELL, HEADING, QUALITY = 160, 16, 88


def coder_named(name: str) -> Coder:
    """A codec to stand beside ours."""
    return VideoCodec(name) if name in VideoCodec.QUALITIES else PictureFormat(name)


def all_settings(coder: Coder, crop: Rgb) -> list[Coded]:
    """A face through every setting; a sequence is left where it has grown too large to matter."""
    sample, made = Sample("synthetic", Path()), []
    for sequence in coder.settings():
        for setting in sequence:
            made.append(coder.code(sample, crop, setting))
            if made[-1].bytes > 3000:
                break
    return made


def at_most(made: Sequence[Coded], crop: Rgb, budget: int) -> Coded:
    """The best of those within a budget, or the smallest of all."""
    fitting = [one for one in made if one.bytes <= budget]
    if not fitting:
        return min(made, key=lambda one: one.bytes)
    values = psnr256(crop[None], np.stack([one.picture for one in fitting]))
    return fitting[int(values.argmax())]


def sheet(columns: Sequence[tuple[str, Sequence[Rgb]]]) -> Image.Image:
    """Named columns of pictures, a row for each face."""
    rows = [
        np.concatenate([scale(picture, CELL) for picture in row], axis=1)
        for row in zip(*(pictures for _, pictures in columns), strict=True)
    ]
    page = Image.new("RGB", (CELL * len(columns), HEADING + CELL * len(rows)), "white")
    page.paste(Image.fromarray(np.concatenate(rows)), (0, HEADING))
    draw = ImageDraw.Draw(page)
    for i, (name, _) in enumerate(columns):
        draw.text((i * CELL + 4, 2), name, fill="black")
    return page


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=[1, 3, 5, 7])
    parser.add_argument("--faces", type=int, default=16)
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--beside", nargs="+", default=["x265", "avif"])
    parser.add_argument("--out", type=Path, default=DOCS)
    args = parser.parse_args()
    codec = Codec.load()
    pictures, _ = synthetic_set(load_generator(), args.faces, SEED)
    crops = [scale(picture, WORKING_SIZE) for picture in pictures]
    others = {
        name: [all_settings(coder_named(name), crop) for crop in crops] for name in args.beside
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for rate in args.rates:
        faces = [codec.encode(crop, rate, args.effort) for crop in crops]
        columns: list[tuple[str, list[Rgb]]] = [("original", crops)]
        for name, made in others.items():
            chosen = [
                at_most(m, c, f.total_bytes) for m, c, f in zip(made, crops, faces, strict=True)
            ]
            size = np.mean([one.bytes for one in chosen])
            columns.append((f"{name}, {size:.0f} bytes", [one.picture for one in chosen]))
        for layer in LAYERS:
            size = np.mean([face.up_to(layer).total_bytes for face in faces])
            decoded = [codec.decode(face, layer, WORKING_SIZE) for face in faces]
            columns.append((f"up to {layer}, {size:.0f} bytes", decoded))
        path = args.out / f"contact-sheet-rate-{rate}.jpg"
        sheet(columns).save(path, quality=QUALITY)
        print(path)


if __name__ == "__main__":
    main()
