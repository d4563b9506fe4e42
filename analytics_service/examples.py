"""The example of a search or of a watchlist entry: a face, a packet, a picture or an embedding.

Belongs here: from any of them to an embedding that can be compared. Does not belong here: what is
compared with it. Nothing that comes in here is kept.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from analytics_service.store import ResultStore
from sfic.analysis import Analysis
from sfic.codec import Codec
from sfic.errors import BundleMismatch, FaceNotKept, FaceTooPoor, InvalidInput, NoFaceFound
from sfic.pictures import PictureLimits, read_picture
from sfic.v1 import analytics_pb2

__all__ = ["Example", "ExampleReader"]

Request: TypeAlias = analytics_pb2.SearchFacesRequest | analytics_pb2.PutWatchlistEntryRequest

_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Example:
    """An embedding to compare with, float32 [D], unit; `face_id` of a kept face, else empty."""

    embedding: NDArray[np.float32]
    face_id: str = ""


class ExampleReader:
    """Reads what a request wants to find. `executor` runs the networks."""

    def __init__(
        self,
        codec: Codec,
        store: ResultStore,
        executor: Executor,
        limits: PictureLimits,
        min_trusted_score: float,
    ) -> None:
        self._codec = codec
        self._store = store
        self._executor = executor
        self._limits = limits
        self._min_trusted_score = min_trusted_score

    async def read(self, request: Request) -> Example | None:
        """The example, None when the request has none.

        Raises `FaceNotKept`, `BundleMismatch`, `FaceTooPoor` for one that must not be compared,
        `NoFaceFound`, and what pictures and packets raise.
        """
        like = request.WhichOneof("like")
        if like is None:
            return None
        if like == "face_id":
            return await self._kept_face(request.face_id)
        if like == "embedding":
            return Example(self._embedding(request.embedding))
        loop = asyncio.get_running_loop()
        if like == "basic":
            return await loop.run_in_executor(self._executor, self._packet, request.basic)
        return await loop.run_in_executor(self._executor, self._picture, request.picture)

    async def _kept_face(self, face_id: str) -> Example:
        result = await self._store.by_face(face_id)
        if result is None:
            raise FaceNotKept(f"no result of face {face_id!r} is kept", face_id=face_id)
        self._check_bundle(f"face {face_id}", result.model_bundle)
        if not result.embedding:
            raise FaceTooPoor(f"face {face_id} is too poor to be compared", face_id=face_id)
        return Example(result.vector(), face_id)

    def _embedding(self, given: analytics_pb2.Embedding) -> NDArray[np.float32]:
        self._check_bundle("the embedding", given.model_bundle)
        vector = np.asarray(given.values, np.float32)
        if not len(vector) or not abs(float(np.linalg.norm(vector)) - 1.0) < _UNIT_TOLERANCE:
            raise InvalidInput("embedding: must be a unit vector")
        return vector

    def _packet(self, basic: bytes) -> Example:
        return Example(self._trusted(self._codec.analyze(basic)))

    def _picture(self, picture: bytes) -> Example:
        pixels = read_picture(picture, self._limits)
        faces = self._codec.encode_picture(pixels, max_faces=1, layers="basic")
        if not faces:
            raise NoFaceFound("no face found in the picture")
        analysis = self._codec.analyze(faces[0].basic)
        if faces[0].face_score < self._min_trusted_score:
            raise FaceTooPoor("the face in the picture is too poor to be compared")
        return Example(self._trusted(analysis))

    def _trusted(self, analysis: Analysis) -> NDArray[np.float32]:
        if analysis.face_score.value < self._min_trusted_score:
            raise FaceTooPoor(
                f"the face is too poor to be compared: face score {analysis.face_score.value:.2f},"
                f" at least {self._min_trusted_score:.2f} is needed"
            )
        return analysis.embedding

    def _check_bundle(self, what: str, bundle: str) -> None:
        if bundle != self._codec.model_bundle:
            raise BundleMismatch(
                f"{what} was coded with model bundle {bundle}, which cannot be compared"
                f" with faces of {self._codec.model_bundle}"
            )
