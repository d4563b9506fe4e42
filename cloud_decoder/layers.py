"""Layers in: from the cache as far as it has them, the rest from the edge's `LayerStore`.

Layers are sealed, in the cache and on their way; the keys are asked of the edge for each
reconstruction, so that the edge decides and notes each one, and are kept no longer than it takes.

Belongs here: what has to be fetched and what an answer of the edge means. Does not belong here: how
long layers are kept (`cache`), and what is made of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import grpc
import grpc.aio

from cloud_decoder.cache import CachedFace, LayerCache
from cloud_decoder.metrics import DecoderMetrics
from sfic.errors import AccessDenied, FaceNotKept, LayerMissing, SficError, Unavailable
from sfic.layers import LAYERS, up_to
from sfic.sealing import TAG_BYTES, open_layer
from sfic.service.client import from_rpc_error
from sfic.service.tracing import call_metadata
from sfic.v1 import common_pb2, edge_pb2, edge_pb2_grpc

__all__ = ["LAYER_NUMBERS", "Fetched", "LayerKeys", "LayerSource"]

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


@dataclass(frozen=True)
class LayerKeys:
    """Keys of a face's layers by name, and why there are no more; empty: there are all."""

    face_id: str
    keys: dict[str, bytes]
    refusal: str

    def open(self, sealed: Mapping[str, bytes], level: str) -> dict[str, bytes]:
        """The packets up to a level. Raises `AccessDenied`, `PacketError`, naming the layer."""
        packets: dict[str, bytes] = {}
        for name in up_to(level):
            if name not in self.keys:
                raise AccessDenied(
                    self.refusal or f"the edge has no key of the {name} layer",
                    layer=name,
                    face_id=self.face_id,
                )
            packets[name] = open_layer(self.keys[name], sealed[name], self.face_id, name)
        return packets


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
                sum(len(packet) - TAG_BYTES for packet in packets.values()),
                time.perf_counter() - start,
            )

    async def keys(self, face_id: str, highest: str, on_behalf_of: str, purpose: str) -> LayerKeys:
        """The keys up to a layer, as far as the edge gives them. Raises as `get` does."""
        request = edge_pb2.FetchKeysRequest(
            face_id=face_id,
            highest=LAYER_NUMBERS[highest],
            on_behalf_of=on_behalf_of,
            purpose=purpose,
        )
        try:
            answer = await self._stub.FetchKeys(
                request, timeout=self._timeout, metadata=call_metadata()
            )
        except grpc.RpcError as rpc_error:
            raise self._explained(rpc_error, "keys", LAYERS[0], face_id) from rpc_error
        keys = {_LAYER_NAMES[each.layer]: each.key for each in answer.keys}
        return LayerKeys(face_id, keys, answer.refusal)

    def drop_if(self, unwanted: Callable[[common_pb2.FaceInfo], bool]) -> None:
        """Drops what the cache has of unwanted faces."""
        self._cache.drop_if(unwanted)
        self._show_cache()

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
                        face_ids=[face_id],
                        layers=[LAYER_NUMBERS[name] for name in layers],
                        sealed=True,
                    ),
                    timeout=self._timeout,
                    metadata=call_metadata(),
                )
        except grpc.RpcError as rpc_error:
            raise self._explained(rpc_error, wanted, layers[0], face_id) from rpc_error
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
        if any(len(packets[name]) == size for name, size in _coded_sizes(face.info, packets)):
            raise Unavailable(
                f"{wanted} of face {face_id}: the edge {self._edge} is of a release before sealed"
                " layers; upgrade it first",
                layer=layers[0],
                face_id=face_id,
                edge=self._edge,
            )
        for name, packet in packets.items():
            self._metrics.fetched_bytes.labels(name).inc(len(packet) - TAG_BYTES)
        for name in LAYERS:
            if name in layers and not packets.get(name):
                raise LayerMissing(
                    f"{name} layer of face {face_id}: the edge {self._edge} has none",
                    layer=name,
                    face_id=face_id,
                )
        return face.info, packets

    def _explained(
        self, rpc_error: grpc.RpcError, wanted: str, layer: str, face_id: str
    ) -> SficError:
        error = from_rpc_error(rpc_error, f"edge {self._edge}")
        kind = Unavailable if type(error) is SficError else type(error)
        return kind(
            f"{wanted} of face {face_id}: {error.message}",
            layer=layer,
            face_id=face_id,
            edge=self._edge,
        )

    def _show_cache(self) -> None:
        self._metrics.cache_bytes.set(self._cache.bytes_used)
        self._metrics.cache_faces.set(len(self._cache))


def _coded_sizes(
    info: common_pb2.FaceInfo, packets: Mapping[str, bytes]
) -> Iterator[tuple[str, int]]:
    """Bytes that each of the layers has before it is sealed, as far as the edge told."""
    for name, size in zip(LAYERS, info.layer_bytes, strict=False):
        if packets.get(name):
            yield name, size
