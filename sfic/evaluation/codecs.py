"""The codecs that faces are put through: ours, and those of Pillow and PyAV, free to downscale.

Belongs here: what a codec is to an evaluation, and which settings are tried. VVC is in
`sfic.evaluation.vvc`, reading `--codec` options in `sfic.evaluation.choose`.

Bytes are counted in the anchor's favour: of video codecs the picture's own units alone, without
parameter sets. A picture format counts as the whole file that would be sent.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import Any, Final, Literal, Protocol

import av
import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray
from PIL import Image

from sfic.codec import Codec
from sfic.errors import InvalidInput
from sfic.evaluation.dataset import Sample
from sfic.evaluation.judges import WORKING_SIZE
from sfic.face import EncodedFace
from sfic.layers import Layer
from sfic.packet import RATES

__all__ = [
    "Coded",
    "Coder",
    "PictureFormat",
    "Setting",
    "SficCoder",
    "SficEncoder",
    "VideoCodec",
    "scale",
]

Rgb = NDArray[np.uint8]

SIZES: Final = (64, 96, 128, 192, 256, 512)


@dataclass(frozen=True)
class Coded:
    """A decoded picture, and what it cost: `bytes` as compared, `total_bytes` all that was made."""

    bytes: int
    total_bytes: int
    picture: Rgb  # [S, S, 3]


@dataclass(frozen=True)
class Setting:
    """One way to run a codec: the side it codes at, and its quality in its own unit."""

    size: int
    quality: int
    label: str


class Coder(Protocol):
    """A codec with its settings: one curve of the report.

    `sweeps`: its settings are candidates, of which those are kept that stay small enough.
    """

    sweeps: bool

    @property
    def name(self) -> str:
        """Of the curve."""

    @property
    def key(self) -> str:
        """What results are stored under: changes when another build gives other results."""

    def settings(self) -> Sequence[Sequence[Setting]]:
        """All settings, in sequences of rising bytes."""

    def code(self, sample: Sample, crop: Rgb, setting: Setting) -> Coded:
        """Encode and decode one crop, uint8 [512, 512, 3]."""


def scale(picture: Rgb, size: int) -> Rgb:
    """Square picture at `size`: averaged down, or bicubic up."""
    if picture.shape[0] == size:
        return picture
    how = cv2.INTER_AREA if picture.shape[0] > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (size, size), interpolation=how), np.uint8)


class SficEncoder:
    """Encodes crops with our codec, remembering the latest: curves of other layers share them."""

    KEPT = 256

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._kept: OrderedDict[tuple[Any, ...], EncodedFace] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, crop: Rgb, **options: Any) -> EncodedFace:
        """As `Codec.encode`."""
        key = (hash(crop.tobytes()), tuple(options.items()))
        with self._lock:
            face = self._kept.get(key)
        if face is None:
            face = self.codec.encode(crop, **options)
            with self._lock:
                self._kept[key] = face
                if len(self._kept) > self.KEPT:
                    self._kept.popitem(last=False)
        return face


class SficCoder:
    """Our codec up to `layers`, at rates or at bytes of all three layers together."""

    sweeps = False

    def __init__(
        self,
        encoder: SficEncoder,
        layers: Layer = "enhanced",
        rates: Sequence[int] = RATES,
        effort: int = 0,
        target_bytes: Sequence[int] = (),
    ) -> None:
        """`target_bytes`: used in place of `rates` when there are any."""
        self._encoder, self._layers, self._effort = encoder, layers, effort
        # The largest picture is what users see; judges see it unharmed at their own size.
        sizes = [s for s in encoder.codec.sizes if s >= WORKING_SIZE] or encoder.codec.sizes[-1:]
        self._size = int(sizes[0])
        if target_bytes:
            self._settings = [Setting(self._size, n, f"{n} bytes") for n in sorted(target_bytes)]
        else:
            self._settings = [Setting(self._size, r, f"rate {r}") for r in sorted(rates)]
        self._by_bytes = bool(target_bytes)
        name = {"basic": "sfic basic", "middle": "sfic basic+middle", "enhanced": "sfic"}[layers]
        by_bytes = " to bytes" if target_bytes else ""
        self.name = name + by_bytes + (f", effort {effort}" if effort else "")
        codec = encoder.codec
        made = f"{codec.model_bundle} {codec.provider}"
        self.key = f"sfic {made} effort {effort} {layers} {self._size}"

    def settings(self) -> list[list[Setting]]:
        """All in one sequence."""
        return [self._settings]

    def code(self, sample: Sample, crop: Rgb, setting: Setting) -> Coded:
        """Packets as sent, headers included. A face that cannot be so small has the lowest rate."""
        options: dict[str, Any] = {"effort": self._effort}
        if self._by_bytes:
            try:
                face = self._encoder.encode(crop, target_bytes=setting.quality, **options)
            except InvalidInput:
                face = self._encoder.encode(crop, rate=RATES[0], **options)
        else:
            face = self._encoder.encode(crop, rate=setting.quality, **options)
        face = face.up_to(self._layers)
        picture = self._encoder.codec.decode(face, self._layers, self._size)
        return Coded(face.total_bytes, face.total_bytes, picture)


class _Downscaling:
    """What codecs that may downscale share: a sweep of sizes and qualities."""

    sweeps = True

    def __init__(self, sizes: Sequence[int], qualities: Sequence[int], unit: str) -> None:
        self._sizes, self._qualities, self._unit = sizes, qualities, unit

    def settings(self) -> list[list[Setting]]:
        """A sequence for each size."""
        return [
            [Setting(s, q, f"{s} px, {self._unit} {q}") for q in self._qualities]
            for s in self._sizes
        ]


class PictureFormat(_Downscaling):
    """A still-picture format of Pillow; `qualities` by rising bytes."""

    QUALITIES: Final = {
        "avif": (0, 5, 10, 15, 20, 30, 40, 50, 60, 75),
        "webp": (0, 5, 10, 20, 30, 45, 60, 80),
        "jpeg": (1, 5, 10, 15, 20, 30, 45, 60, 80),
        "jpeg2000": (100, 150, 200, 300, 400, 650, 1000, 1311, 2000),
    }
    _OPTIONS: Final[dict[str, dict[str, Any]]] = {
        "avif": {"subsampling": "4:2:0", "speed": 6},
        "webp": {"method": 6},
        "jpeg": {"optimize": True, "subsampling": "4:2:0"},
        "jpeg2000": {"quality_mode": "rates", "irreversible": True, "no_jp2": True, "mct": 1},
    }

    def __init__(
        self, name: str, sizes: Sequence[int] = SIZES, qualities: Sequence[int] = ()
    ) -> None:
        """`name`: avif, webp, jpeg, or jpeg2000, whose quality is a number of bytes."""
        if name not in self.QUALITIES:
            raise InvalidInput(f"no picture format {name!r}: one of {', '.join(self.QUALITIES)}")
        unit = "bytes" if name == "jpeg2000" else "quality"
        super().__init__(sizes, sorted(qualities) or self.QUALITIES[name], unit)
        self.name = name
        self.key = f"{name} pillow {version('pillow')} {self._OPTIONS[name]}"

    def code(self, sample: Sample, crop: Rgb, setting: Setting) -> Coded:
        """Through a file in memory; its bytes count whole."""
        options = dict(self._OPTIONS[self.name])
        if self.name == "jpeg2000":
            options["quality_layers"] = [max(1.0, 3 * setting.size**2 / setting.quality)]
        else:
            options["quality"] = setting.quality
        file = io.BytesIO()
        Image.fromarray(scale(crop, setting.size)).save(file, self.name.upper(), **options)
        decoded = np.asarray(Image.open(file).convert("RGB"), dtype=np.uint8)
        return Coded(file.tell(), file.tell(), scale(decoded, WORKING_SIZE))


class VideoCodec(_Downscaling):
    """x265 or SVT-AV1 through PyAV: one key frame, 4:2:0, constant quantiser."""

    QUALITIES: Final = {
        "x265": (51, 48, 45, 42, 39, 36, 33, 30, 27),
        "av1": (63, 60, 57, 53, 48, 43, 38, 33, 28, 23),
    }
    _ENCODERS: Final = {
        "x265": ("libx265", {"preset": "veryslow"}),
        "av1": ("libsvtav1", {"preset": "3"}),
    }

    def __init__(
        self, name: str, sizes: Sequence[int] = SIZES, qualities: Sequence[int] = ()
    ) -> None:
        """`name`: x265 or av1; `qualities`: QP or CRF, any order. InvalidInput if not built in."""
        if name not in self.QUALITIES:
            raise InvalidInput(f"no video codec {name!r}: one of {', '.join(self.QUALITIES)}")
        self._encoder, self._options = self._ENCODERS[name]
        if self._encoder not in av.codecs_available:
            raise InvalidInput(f"this PyAV was built without {self._encoder}: leave {name} out")
        unit = "QP" if name == "x265" else "CRF"
        super().__init__(sizes, sorted(qualities, reverse=True) or self.QUALITIES[name], unit)
        self.name = name
        self.key = f"{name} av {version('av')} {self._options}"

    def code(self, sample: Sample, crop: Rgb, setting: Setting) -> Coded:
        """Bytes of the picture's own units, without parameter sets."""
        packets = self._encode(scale(crop, setting.size), setting.quality)
        data = b"".join(packets)
        own = hevc_picture_bytes(data) if self.name == "x265" else av1_picture_bytes(data)
        decoder = _context("hevc" if self.name == "x265" else "libdav1d", "r")
        frames = [f for p in packets for f in decoder.decode(av.Packet(p))]
        frames += decoder.decode(None)
        picture = np.asarray(frames[0].to_ndarray(format="rgb24"), np.uint8)
        return Coded(own, len(data), scale(picture, WORKING_SIZE))

    def _encode(self, picture: Rgb, quality: int) -> list[bytes]:
        os.environ.setdefault("SVT_LOG", "1")  # errors only; it would print a banner each time
        context = _context(self._encoder, "w")
        context.width = context.height = picture.shape[0]
        context.pix_fmt = "yuv420p"
        context.time_base = Fraction(1, 25)
        if self.name == "x265":
            own = {"x265-params": f"qp={quality}:log-level=none:keyint=1:info=0"}
        else:
            own = {"svtav1-params": f"rc=0:aq-mode=0:qp={quality}:lp=1", "g": "1"}
        context.options = {**self._options, **own}
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        packets = [*context.encode(frame), *context.encode(None)]
        return [bytes(packet) for packet in packets]


def _context(name: str, mode: Literal["r", "w"]) -> VideoCodecContext:
    context = av.CodecContext.create(name, mode)
    assert isinstance(context, VideoCodecContext)
    return context


def hevc_picture_bytes(data: bytes) -> int:
    """Bytes of the coded slices (NAL unit types under 32) of an Annex B stream, start codes off."""
    return sum(len(unit) for unit in nal_units(data) if (unit[0] >> 1) & 0x3F < 32)


def nal_units(data: bytes) -> list[bytes]:
    """NAL units of an Annex B stream, without start codes and trailing zeros."""
    units = [part.rstrip(b"\0") for part in data.split(b"\0\0\1")[1:]]
    return [unit for unit in units if unit]


def av1_picture_bytes(data: bytes) -> int:
    """Bytes of the frame OBUs (types 3, 4 and 6 of AV1, section 5.3), headers of OBUs included."""
    total = at = 0
    while at < len(data):
        start, kind = at, (data[at] >> 3) & 15
        has_size, extension = bool(data[at] & 2), bool(data[at] & 4)
        at += 2 if extension else 1
        size = len(data) - at
        if has_size:
            size = shift = 0
            while True:
                byte = data[at]
                at += 1
                size |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
        at += size
        if kind in (3, 4, 6):
            total += at - start
    return total
