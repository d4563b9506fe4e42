"""Searching: by filters, by a face, by a picture.

A picture is turned into a basic layer here, with the codec's own encoder, because that is what
analytics compares; the picture itself goes no further.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from console.messages import face_json
from console.peers import Caller, Peers
from console.settings import ConsoleSettings
from sfic.errors import NoFaceFound
from sfic.pictures import PictureLimits, read_picture
from sfic.v1 import analytics_pb2

if TYPE_CHECKING:
    from sfic.codec import Codec

__all__ = ["PictureReader", "search"]


class PictureReader:
    """Pictures in, basic layers out; the codec is loaded with the first picture."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self._bundle = settings.bundle
        self._limits = PictureLimits(max_bytes=settings.max_message_bytes)
        self._one_at_a_time = asyncio.Lock()
        self._codec: Codec | None = None

    async def basic_layer(self, picture: bytes) -> bytes:
        """The basic layer's packet of the largest face.

        Raises `NoFaceFound`, and what reading a picture raises.
        """
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._encode, picture)

    def _encode(self, picture: bytes) -> bytes:
        from sfic.codec import Codec

        pixels = read_picture(picture, self._limits)
        if self._codec is None:
            self._codec = Codec.load(self._bundle, provider="cpu", threads=1)
        faces = self._codec.encode_picture(pixels, max_faces=1)
        if not faces:
            raise NoFaceFound("no face found in the picture")
        return faces[0].basic


async def search(
    peers: Peers, caller: Caller, asked: analytics_pb2.SearchFacesRequest
) -> dict[str, Any]:
    """Hits, best first; newest first without an example."""
    answer = await peers.search(asked, caller)
    by_likeness = asked.WhichOneof("like") is not None
    return {
        "by_likeness": by_likeness,
        "hits": [
            {
                **face_json(hit.analysis),
                "similarity": round(hit.similarity, 4) if by_likeness else None,
            }
            for hit in answer.hits
        ],
    }
