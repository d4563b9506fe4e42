"""Layers in: from the cache as far as it has them, the rest from the edge's `LayerStore`.

Belongs here: what has to be fetched and what an answer of the edge means. Does not belong here: how
long layers are kept (`cache`), and what is made of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import grpc
import grpc.aio

from cloud_decoder.cache import CachedFace, LayerCache
from cloud_decoder.metrics import DecoderMetrics
from sfic.errors import FaceNotKept, LayerMissing, SficError, Unavailable
from sfic.layers import LAYERS
from sfic.service.client import from_rpc_error
from sfic.v1 import common_pb2, edge_pb2, edge_pb2_grpc

__all__ = ["LAYER_NUMBERS", "Fetched", "LayerSource"]

LAYER_NUMBERS: dict[str, common_pb2.Layer] = {
    "basic": common_pb2.LAYER_BASIC,
    "middle": common_pb2.LAYER_MIDDLE,
    "enhanced": common_pb2.LAYER_ENHANCED,
}
_LAYER_NAMES = {number: name for name, number in LAYER_NUMBERS.items()}


@dataclass(frozen=True)
class Fetched:
    """A face with the layers asked for, and what it took to have them."""

    face: CachedFace
    fetched_bytes: int
    seconds: float


class LayerSource:
    """Layers of faces by id. Two requests for one face do not fetch a layer twice."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        edge: str,
        cache: LayerCache,
        metrics: DecoderMetrics,
        timeout: float,
    ) -> None:
        """`edge` is the address that errors name; `timeout` in seconds for one fetch."""
        self._stub = edge_pb2_grpc.LayerStoreStub(channel)
        self._edge = edge
        self._cache = cache
        self._metrics = metrics
        self._timeout = timeout
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(
        self, face_id: str, layers: Sequence[str], known: CachedFace | None = None
    ) -> Fetched:
        """The face with at least `layers`.

        `known` is what the caller holds of it already. Raises `FaceNotKept`, `LayerMissing`, or
        `Unavailable`, each naming the layer that could not be had.
        """
        start = time.perf_counter()
        lock = self._locks.setdefault(face_id, asyncio.Lock())
        async with lock:
            cached = self._cache.get(face_id)
            face = known or cached
            if face is not None and cached is not None:
                face = CachedFace(face.info, {**cached.layers, **face.layers}, cached.stored)
            missing = [name for name in layers if face is None or name not in face.layers]
            self._metrics.layers_cached.inc(len(layers) - len(missing))
            if face is not None and not missing:
                return Fetched(face, 0, time.perf_counter() - start)
            info, packets = await self._fetch(face_id, missing)
            kept = self._cache.put(face_id, info, packets)
            self._show_cache()
            held = {**(face.layers if face else {}), **kept.layers}
            return Fetched(
                CachedFace(info, held, kept.stored),
                sum(map(len, packets.values())),
                time.perf_counter() - start,
            )

    def forget(self, face_id: str) -> None:
        """Drops a face whose packets turned out to be bad, so that they are fetched again."""
        self._cache.drop(face_id)
        self._show_cache()

    async def expire_for_ever(self) -> None:
        """Forgets faces past their age, also those that nobody asks for, until cancelled."""
        while True:
            await asyncio.sleep(30.0)
            self._cache.expire()
            self._show_cache()

    async def _fetch(
        self, face_id: str, layers: Sequence[str]
    ) -> tuple[common_pb2.FaceInfo, dict[str, bytes]]:
        wanted = " and ".join(layers) + (" layer" if len(layers) == 1 else " layers")
        self._metrics.fetch_calls.inc()
        try:
            with self._metrics.fetch_seconds.time():
                answer = await self._stub.FetchLayers(
                    edge_pb2.FetchLayersRequest(
                        face_ids=[face_id], layers=[LAYER_NUMBERS[name] for name in layers]
                    ),
                    timeout=self._timeout,
                )
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error, f"edge {self._edge}")
            kind = Unavailable if type(error) is SficError else type(error)
            raise kind(
                f"{wanted} of face {face_id}: {error.message}",
                layer=layers[0],
                face_id=face_id,
                edge=self._edge,
            ) from rpc_error
        face = next((face for face in answer.faces if face.face_id == face_id), None)
        if face is None or not face.found:
            raise FaceNotKept(
                f"{wanted} of face {face_id}: the edge {self._edge} does not keep this face",
                layer=layers[0],
                face_id=face_id,
            )
        packets = {
            _LAYER_NAMES[packet.layer]: packet.data
            for packet in face.layers
            if packet.layer in _LAYER_NAMES
        }
        for name, packet in packets.items():
            self._metrics.fetched_bytes.labels(name).inc(len(packet))
        for name in LAYERS:
            if name in layers and not packets.get(name):
                raise LayerMissing(
                    f"{name} layer of face {face_id}: the edge {self._edge} has none",
                    layer=name,
                    face_id=face_id,
                )
        return face.info, packets

    def _show_cache(self) -> None:
        self._metrics.cache_bytes.set(self._cache.bytes_used)
        self._metrics.cache_faces.set(len(self._cache))
