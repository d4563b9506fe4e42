"""Where a picture comes from, written on it and into it.

A PNG that leaves the console says what it is in two ways: a strip under the picture that anybody
sees, and text chunks (PNG specification, section 11.3.3) that programs read.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from sfic.face import brightened
from sfic.v1 import common_pb2

__all__ = ["NOTICE", "Provenance", "captioned_png"]

NOTICE = "synthesised by a generative codec: not a photograph"

_INK = (236, 240, 244)
_FAINT = (164, 176, 188)
_STRIP = (16, 22, 29)


@dataclass(frozen=True)
class Provenance:
    """What there is to know of a synthesised picture."""

    face: common_pb2.FaceInfo
    layers: str
    """The layers used: basic, basic+middle or basic+middle+enhanced."""
    layer_bytes: int
    purpose: str
    person: str
    """Who asked; empty when nobody signs in."""
    provider: str
    made: datetime

    def texts(self) -> Mapping[str, str]:
        """Text chunks by keyword; the first two are of the PNG specification's own list."""
        captured = self.face.capture_time.ToDatetime(timezone.utc)
        return {
            "Warning": NOTICE,
            "Software": "sfic console",
            "sfic:face_id": self.face.face_id,
            "sfic:camera": self.face.camera_id,
            "sfic:edge": self.face.edge_id,
            "sfic:captured": captured.isoformat(timespec="milliseconds"),
            "sfic:model_bundle": self.face.model_bundle,
            "sfic:layers": self.layers,
            "sfic:layer_bytes": str(self.layer_bytes),
            "sfic:rate": str(self.face.rate),
            "sfic:brightened": f"{brightened(self.face):.2f}",
            "sfic:purpose": self.purpose,
            "sfic:requested_by": self.person,
            "sfic:provider": self.provider,
            "sfic:synthesised": self.made.isoformat(timespec="milliseconds"),
        }


def captioned_png(picture: bytes, provenance: Provenance) -> bytes:
    """The picture with its strip below and its text chunks, as PNG.

    `picture`: any file that the decoder sends. Pixels above the strip stay as they are.
    """
    with Image.open(io.BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    unit = max(10, round(width / 46))
    lines = _caption(provenance)
    strip = round(unit * (1.5 * len(lines) + 1.1))
    page = Image.new("RGB", (width, height + strip), _STRIP)
    page.paste(image, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        font, room = _font(unit if number == 0 else round(unit * 0.82)), width - 2 * unit
        while line and draw.textlength(line, font=font) > room:
            line = line[:-2].rstrip("… ") + "…"
        at = (unit, height + round(unit * (0.6 + 1.5 * number)))
        draw.text(at, line, fill=_INK if number == 0 else _FAINT, font=font)
    chunks = PngImagePlugin.PngInfo()
    for keyword, text in provenance.texts().items():
        chunks.add_itxt(keyword, text)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", pnginfo=chunks, compress_level=3)
    return buffer.getvalue()


def _caption(provenance: Provenance) -> tuple[str, ...]:
    face = provenance.face
    captured = face.capture_time.ToDatetime(timezone.utc)
    asked = f" for {provenance.person}" if provenance.person else ""
    factor = brightened(face)
    bright = f" · dim light, made {factor:.1f} times brighter" if factor > 1.0 else ""
    return (
        NOTICE[:1].upper() + NOTICE[1:],
        f"{provenance.layers}, {provenance.layer_bytes} bytes · model bundle {face.model_bundle}"
        f"{bright}",
        f"{face.camera_id}, {captured:%Y-%m-%d %H:%M:%S} UTC · face {face.face_id}",
        f"{provenance.made:%Y-%m-%d %H:%M:%S} UTC{asked}: {provenance.purpose}",
    )


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
