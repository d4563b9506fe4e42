"""Pictures of a face: the small one of a card, all levels as they arrive, and the file to keep.

Belongs here: what the decoder is asked, and how its answers reach the browser. Does not belong
here: what is written on a picture (`provenance`).
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

import grpc.aio

from console.messages import layer_name
from console.peers import Caller, Peers
from console.provenance import Provenance, captioned_png
from sfic.errors import InvalidInput, SficError
from sfic.layers import up_to
from sfic.service.client import from_rpc_error, sfic_errors
from sfic.v1 import common_pb2, decoder_pb2

__all__ = ["Pictures", "picture_request"]

_MEDIA_TYPES = {
    decoder_pb2.PICTURE_FORMAT_JPEG: "image/jpeg",
    decoder_pb2.PICTURE_FORMAT_PNG: "image/png",
}
_PREVIEW_PURPOSE = "console: small picture"
_LEVELS = {
    "basic": common_pb2.LAYER_BASIC,
    "middle": common_pb2.LAYER_MIDDLE,
    "enhanced": common_pb2.LAYER_ENHANCED,
}


class Pictures:
    """Asks the decoder. Nothing that comes back is kept."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._settings = peers.settings
        self._previews = asyncio.Semaphore(peers.settings.previews_at_once)

    async def preview(self, face_id: str, caller: Caller) -> bytes:
        """A small JPEG from the basic layer alone."""
        asked = decoder_pb2.ReconstructRequest(
            face_id=face_id,
            highest=common_pb2.LAYER_BASIC,
            final_only=True,
            size=self._settings.preview_size,
            format=decoder_pb2.PICTURE_FORMAT_JPEG,
            purpose=_PREVIEW_PURPOSE,
        )
        async with self._previews:
            return bytes((await self._last(asked, caller)).picture)

    async def levels(
        self, asked: decoder_pb2.ReconstructRequest, caller: Caller
    ) -> AsyncIterator[bytes]:
        """One line of JSON for each level as it arrives; a failure is the last line.

        A line holds `level`, its `picture` (and `frame`, when pasted back) in base64, bytes and
        milliseconds; or `error` with code and message. Pictures already sent stay valid.
        """
        asked.format = decoder_pb2.PICTURE_FORMAT_JPEG
        call = self._peers.decoder.Reconstruct(
            asked, timeout=self._settings.answer_seconds, metadata=caller.metadata
        )
        try:
            async for answer in call:
                yield _line(_level(answer))
        except grpc.RpcError as error:
            yield _line({"error": _error(from_rpc_error(error, "decoder"))})
        finally:
            call.cancel()

    async def keepsake(self, asked: decoder_pb2.ReconstructRequest, caller: Caller) -> bytes:
        """A PNG of the highest level that says what it is, visibly and in its text chunks."""
        asked.format = decoder_pb2.PICTURE_FORMAT_PNG
        asked.final_only = True
        answer = await self._last(asked, caller)
        provenance = Provenance(
            face=answer.face,
            layers="+".join(up_to(layer_name(answer.level))),
            layer_bytes=answer.layer_bytes,
            purpose=asked.purpose,
            person=caller.name,
            provider=answer.provider,
            made=datetime.now(timezone.utc),
        )
        return await asyncio.to_thread(captioned_png, answer.frame or answer.picture, provenance)

    async def _last(
        self, asked: decoder_pb2.ReconstructRequest, caller: Caller
    ) -> decoder_pb2.ReconstructResponse:
        caller.check("CloudDecoder/Reconstruct")
        last: decoder_pb2.ReconstructResponse | None = None
        with sfic_errors("decoder"):
            async for answer in self._peers.decoder.Reconstruct(
                asked, timeout=self._settings.answer_seconds, metadata=caller.metadata
            ):
                last = answer
        if last is None:
            raise SficError("the decoder sent no picture")
        return last


def picture_request(
    face_id: str, purpose: str, highest: str, size: int, paste_back: bool, frame: bytes
) -> decoder_pb2.ReconstructRequest:
    """What a person asked for; `InvalidInput` without a purpose, or for a layer there is not."""
    if not purpose.strip():
        raise InvalidInput("purpose: say why the picture is wanted", field="purpose")
    if highest not in _LEVELS:
        raise InvalidInput(f"highest: {highest!r} is no layer", field="highest")
    return decoder_pb2.ReconstructRequest(
        face_id=face_id,
        highest=_LEVELS[highest],
        size=size,
        purpose=purpose.strip(),
        paste_back=paste_back,
        frame=frame if paste_back else b"",
    )


def _level(answer: decoder_pb2.ReconstructResponse) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "level": layer_name(answer.level),
        "width": answer.width,
        "height": answer.height,
        "media_type": _MEDIA_TYPES[answer.format],
        "picture": base64.b64encode(answer.picture).decode(),
        "layer_bytes": answer.layer_bytes,
        "fetched_bytes": answer.fetched_bytes,
        "fetch_ms": round(answer.fetch_ms, 1),
        "decode_ms": round(answer.decode_ms, 1),
        "synthesis_ms": round(answer.synthesis_ms, 1),
        "provider": answer.provider,
    }
    if answer.frame:
        shown["frame"] = base64.b64encode(answer.frame).decode()
    return shown


def _error(error: SficError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message}


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"
