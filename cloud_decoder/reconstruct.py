"""One reconstruction: from a request to one picture for each level, each as soon as it can be.

Belongs here: the order of fetching and synthesising, and what a picture looks like when it is sent.
Does not belong here: where layers come from (`layers`), gRPC, and how many requests may run.

    fetch basic --> fetch middle --> fetch enhanced        event loop
              \\-> picture     \\-> picture      \\-> picture   pool of threads

The next layer is fetched while the picture before it is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
import structlog
from numpy.typing import NDArray

from cloud_decoder.cache import CachedFace
from cloud_decoder.layers import LAYER_NUMBERS, Fetched, LayerKeys, LayerSource
from cloud_decoder.metrics import DecoderMetrics
from sfic.alignment import Placement, paste_back
from sfic.bundles import Codecs
from sfic.codec import Codec
from sfic.errors import AccessDenied, InvalidInput, SficError
from sfic.exposure import darken
from sfic.face import EncodedFace, brightened
from sfic.layers import as_layer, up_to
from sfic.pictures import PictureLimits, read_picture
from sfic.sealing import TAG_BYTES
from sfic.service.tracing import span
from sfic.v1 import common_pb2, decoder_pb2

__all__ = ["Painter", "Wanted", "read_request", "reconstruct"]

log = structlog.get_logger(__name__)

MAX_PURPOSE = 200
MAX_ON_BEHALF_OF = 100
MAX_FACE_ID = 64
# Texture has no repeats to look for: a third of the time of the usual strategy, for fewer bytes.
_PNG = [
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG),
]
_LEVELS = {number: name for name, number in LAYER_NUMBERS.items()}


@dataclass(frozen=True)
class Wanted:
    """A checked request. `frame`: uint8 RGB [H, W, 3] to paste into, None for black."""

    face_id: str
    levels: tuple[str, ...]
    size: int
    format: decoder_pb2.PictureFormat
    paste_back: bool
    frame: NDArray[np.uint8] | None
    purpose: str
    on_behalf_of: str


@dataclass(frozen=True)
class Painted:
    """The pictures of one level, as sent, and how long they took."""

    picture: bytes
    frame: bytes
    frame_width: int
    frame_height: int
    decode_ms: float
    synthesis_ms: float


def read_request(
    request: decoder_pb2.ReconstructRequest,
    limits: PictureLimits,
    sizes: Sequence[int],
    caller: str,
) -> Wanted:
    """Checks a request; takes CPU time when it carries a frame. Raises `InvalidInput`.

    `sizes`: sides that the codec makes, ascending. `caller`: who asks.
    """
    if not 1 <= len(request.face_id) <= MAX_FACE_ID:
        raise InvalidInput(f"face_id: must have 1..{MAX_FACE_ID} characters", field="face_id")
    highest = request.highest or common_pb2.LAYER_ENHANCED
    if highest not in _LEVELS:
        raise InvalidInput(f"highest: no layer has the number {highest}", field="highest")
    size = request.size or sizes[-1]
    if size not in sizes:
        choice = ", ".join(map(str, sizes))
        raise InvalidInput(f"size {size}: must be one of {choice}", field="size")
    picture_format = request.format or decoder_pb2.PICTURE_FORMAT_PNG
    if picture_format not in decoder_pb2.PictureFormat.values():
        raise InvalidInput(f"format: no format has the number {picture_format}", field="format")
    if len(request.purpose) > MAX_PURPOSE:
        raise InvalidInput(f"purpose: at most {MAX_PURPOSE} characters", field="purpose")
    if request.frame and not request.paste_back:
        raise InvalidInput("frame: only of use with paste_back", field="frame")
    if len(request.on_behalf_of) > MAX_ON_BEHALF_OF:
        raise InvalidInput(
            f"on_behalf_of: at most {MAX_ON_BEHALF_OF} characters", field="on_behalf_of"
        )
    asks = f"{request.on_behalf_of} through {caller}" if request.on_behalf_of else caller
    levels = up_to(_LEVELS[highest])
    return Wanted(
        face_id=request.face_id,
        levels=levels[-1:] if request.final_only else levels,
        size=size,
        format=picture_format,
        paste_back=request.paste_back,
        frame=read_picture(request.frame, limits) if request.frame else None,
        purpose=request.purpose,
        # The edge takes no more; a name in a certificate or token can be longer.
        on_behalf_of=asks[:MAX_PURPOSE],
    )


class Painter:
    """Makes pictures of faces, in the calling thread."""

    def __init__(
        self, codecs: Codecs, metrics: DecoderMetrics, limits: PictureLimits, jpeg_quality: int
    ) -> None:
        self._codecs = codecs
        self._metrics = metrics
        self._limits = limits
        self._jpeg_quality = jpeg_quality

    def codec_of(self, info: common_pb2.FaceInfo, size: int) -> Codec:
        """The codec that makes the face's picture.

        Raises `BundleMismatch`, and `InvalidInput` for a size that only the other bundle makes.
        """
        codec = self._codecs.of(info.model_bundle or self._codecs.own.model_bundle)
        if size not in codec.sizes:
            choice = ", ".join(map(str, codec.sizes))
            raise InvalidInput(
                f"size {size}: must be one of {choice} for a face of model bundle"
                f" {codec.model_bundle}",
                field="size",
            )
        return codec

    def paint(
        self,
        codec: Codec,
        face: CachedFace,
        keys: LayerKeys,
        level: str,
        wanted: Wanted,
        asked: float,
    ) -> Painted:
        """The picture of one level. `asked`: when it was queued, by `time.perf_counter`.

        Raises `AccessDenied` without the keys, `PacketError` for a bad packet, `InvalidInput` for a
        face or a frame that cannot be pasted.
        """
        start = time.perf_counter()
        self._metrics.wait_seconds.observe(start - asked)
        target = self._frame_for(face.info, wanted) if wanted.paste_back else None
        packets = keys.open(face.layers, level)
        encoded = EncodedFace(packets["basic"], packets.get("middle"), packets.get("enhanced"))
        symbols, rate = codec.decode_symbols(encoded, level)
        decoded = time.perf_counter()
        layer = as_layer(level)
        pixels = codec.synthesise(symbols, rate, layer, wanted.size)  # [size, size, 3]
        done = time.perf_counter()
        self._metrics.synthesis_seconds.labels(level, wanted.size).observe(done - start)
        frame = None
        if target is not None:
            frame = paste_back(target[0], darken(pixels, brightened(face.info)), target[1])
        return Painted(
            picture=self._pack(pixels, wanted.format),
            frame=b"" if frame is None else self._pack(frame, wanted.format),
            frame_width=0 if frame is None else frame.shape[1],
            frame_height=0 if frame is None else frame.shape[0],
            decode_ms=(decoded - start) * 1e3,
            synthesis_ms=(done - decoded) * 1e3,
        )

    def _frame_for(
        self, info: common_pb2.FaceInfo, wanted: Wanted
    ) -> tuple[NDArray[np.uint8], Placement]:
        """The frame to paste into, uint8 [H, W, 3], and where the face goes in it."""
        flat = info.placement.crop_to_frame
        if len(flat) != 6:
            raise InvalidInput(
                f"face {info.face_id} was sent as an aligned crop and has no frame to go back into"
            )
        placement = Placement(
            ((flat[0], flat[1], flat[2]), (flat[3], flat[4], flat[5])),
            info.placement.frame_width,
            info.placement.frame_height,
        )
        frame = wanted.frame
        if frame is None:
            self._limits.check_size(placement.width, placement.height)
            frame = np.zeros((placement.height, placement.width, 3), np.uint8)
        return frame, placement

    def _pack(self, pixels: NDArray[np.uint8], picture_format: decoder_pb2.PictureFormat) -> bytes:
        if picture_format == decoder_pb2.PICTURE_FORMAT_RAW_RGB8:
            return pixels.tobytes()
        suffix, options = ".png", _PNG
        if picture_format == decoder_pb2.PICTURE_FORMAT_JPEG:
            suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, self._jpeg_quality]
        done, packed = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
        if not done:
            raise SficError(f"cannot write a picture of {pixels.shape[1]}x{pixels.shape[0]}")
        return bytes(packed.tobytes())


async def reconstruct(
    wanted: Wanted,
    source: LayerSource,
    painter: Painter,
    pool: Executor,
) -> AsyncGenerator[decoder_pb2.ReconstructResponse, None]:
    """Yields one answer for each level, lowest first; closing it early cancels what is under way.

    Raises errors of the tree that name the layer which could not be had; what was yielded before
    stays valid.
    """
    face: CachedFace | None = None
    fetched_bytes = 0
    fetching = _fetch(source, wanted, wanted.levels[0], None)
    asking = asyncio.ensure_future(
        source.keys(wanted.face_id, wanted.levels[-1], wanted.on_behalf_of, wanted.purpose)
    )
    try:
        for position, level in enumerate(wanted.levels):
            fetched = await fetching
            face = fetched.face
            fetched_bytes += fetched.fetched_bytes
            codec = painter.codec_of(face.info, wanted.size)
            keys = await asking
            if position + 1 < len(wanted.levels):
                fetching = _fetch(source, wanted, wanted.levels[position + 1], face)
            try:
                # In the trace of the face's own frame, linked to that of who asks.
                with span("decoder.picture", face.info.trace_context, level=level):
                    painted = await asyncio.get_running_loop().run_in_executor(
                        pool, painter.paint, codec, face, keys, level, wanted, time.perf_counter()
                    )
                    log.debug(
                        "picture made",
                        face_id=wanted.face_id,
                        camera_id=face.info.camera_id,
                        level=level,
                        decode_ms=round(painted.decode_ms, 1),
                        synthesis_ms=round(painted.synthesis_ms, 1),
                    )
            except AccessDenied:
                raise
            except SficError as error:
                source.forget(wanted.face_id)
                raise type(error)(
                    f"picture from the {level} layer of face {wanted.face_id}: {error.message}",
                    **{**error.details, "layer": level, "face_id": wanted.face_id},
                ) from error
            yield decoder_pb2.ReconstructResponse(
                level=LAYER_NUMBERS[level],
                width=wanted.size,
                height=wanted.size,
                format=wanted.format,
                picture=painted.picture,
                face=face.info,
                layer_bytes=sum(len(face.layers[name]) - TAG_BYTES for name in up_to(level)),
                fetched_bytes=fetched_bytes,
                fetch_ms=fetched.seconds * 1e3,
                decode_ms=painted.decode_ms,
                synthesis_ms=painted.synthesis_ms,
                frame=painted.frame,
                frame_width=painted.frame_width,
                frame_height=painted.frame_height,
                provider=codec.provider,
            )
    finally:
        fetching.cancel()
        asking.cancel()
        # Also takes the error of a fetch that nobody waits for any more.
        await asyncio.gather(fetching, asking, return_exceptions=True)


def _fetch(
    source: LayerSource, wanted: Wanted, level: str, known: CachedFace | None
) -> asyncio.Task[Fetched]:
    return asyncio.ensure_future(source.get(wanted.face_id, up_to(level), known))
