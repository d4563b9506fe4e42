"""Codecs by their names on the command line: `NAME[:KEY=VALUE,...]`, lists joined by `+`.

    sfic  basic  sfic:effort=1  sfic:rates=1+5+9  sfic:bytes=100+200  sfic:layers=middle
    vvc   vvc:streams=DIR       x265  av1  avif  webp  jpeg  jpeg2000
    x265:sizes=64+128,qualities=45+40

Belongs here: reading them. The codecs are in `sfic.evaluation.codecs` and `sfic.evaluation.vvc`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sfic.codec import Codec
from sfic.errors import InvalidInput
from sfic.evaluation.codecs import (
    SIZES,
    Coder,
    PictureFormat,
    SficCoder,
    SficEncoder,
    VideoCodec,
)
from sfic.evaluation.vvc import VvcEncoder, VvcStreams
from sfic.layers import as_layer
from sfic.packet import RATES

__all__ = ["CODECS", "choose_coders", "usual_codecs"]

CODECS: Final = ("sfic", "basic", "vvc", "x265", "av1", "avif", "webp", "jpeg", "jpeg2000")
_KEYS: Final = {
    "sfic": ("layers", "rates", "effort", "bytes"),
    "basic": ("rates", "effort", "bytes"),
    "vvc": ("streams", "sizes", "qualities"),
}


def usual_codecs() -> list[str]:
    """All that can run here without more words."""
    return [name for name in CODECS if name != "vvc" or shutil.which("vvencapp")]


def choose_coders(specs: Sequence[str], load: Callable[[], Codec]) -> list[Coder]:
    """A coder for each spec; `load` opens our codec when one needs it.

    Raises InvalidInput, naming the spec, for one that cannot be read or names a curve twice.
    """
    encoder: SficEncoder | None = None
    coders: list[Coder] = []
    for spec in specs:
        name, options = _read(spec)
        coder: Coder
        if name in ("sfic", "basic"):
            encoder = encoder or SficEncoder(load())
            coder = SficCoder(
                encoder,
                as_layer(options.get("layers", "basic" if name == "basic" else "enhanced")),
                _numbers(spec, options, "rates", RATES, RATES[0], RATES[-1]),
                _numbers(spec, options, "effort", (0,), 0, 3)[0],
                _numbers(spec, options, "bytes", (), 1, 1 << 20),
            )
        elif name == "vvc" and "streams" in options:
            coder = VvcStreams(Path(options["streams"]))
        elif name == "vvc":
            coder = VvcEncoder(
                _numbers(spec, options, "sizes", VvcEncoder.SIZES, 32, 512),
                _numbers(spec, options, "qualities", VvcEncoder.QPS, 0, 63),
            )
        else:
            sizes = _numbers(spec, options, "sizes", SIZES, 16, 512)
            if name in VideoCodec.QUALITIES:
                coder = VideoCodec(name, sizes, _numbers(spec, options, "qualities", (), 0, 63))
            else:
                top = 1 << 20 if name == "jpeg2000" else 100
                coder = PictureFormat(name, sizes, _numbers(spec, options, "qualities", (), 0, top))
        if coder.name in [other.name for other in coders]:
            raise InvalidInput(f"--codec {spec}: there already is a curve {coder.name!r}")
        coders.append(coder)
    return coders


def _read(spec: str) -> tuple[str, dict[str, str]]:
    name, _, rest = spec.partition(":")
    if name not in CODECS:
        raise InvalidInput(f"unknown codec {name!r}: one of {', '.join(CODECS)}")
    known = _KEYS.get(name, ("sizes", "qualities"))
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in known or not equals or not value:
            raise InvalidInput(f"--codec {spec}: {part!r} is none of {', '.join(known)}=...")
        options[key] = value
    return name, options


def _numbers(
    spec: str, options: dict[str, str], key: str, default: Sequence[int], low: int, high: int
) -> Sequence[int]:
    if key not in options:
        return default
    try:
        values = [int(part) for part in options[key].split("+")]
    except ValueError:
        raise InvalidInput(f"--codec {spec}: {key} is whole numbers joined by +") from None
    if not all(low <= value <= high for value in values):
        raise InvalidInput(f"--codec {spec}: {key} lies in {low}..{high}")
    return values
