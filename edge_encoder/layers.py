"""LayerStore: the layers of faces, by face id, for decoders; and the keys that open them.

Sealed layers go to any decoder. A key, or a layer that the edge opens, goes out only as far as a
grant reaches, and never without a line in the audit log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc.aio

from edge_encoder.grants import MAX_TEXT, GrantBook
from edge_encoder.metrics import EdgeMetrics
from edge_encoder.store import FaceStore, KeptFace
from sfic.audit import AuditLog
from sfic.errors import AccessDenied, FaceNotKept, InvalidInput
from sfic.sealing import TAG_BYTES, open_layer
from sfic.service.access import current_caller
from sfic.v1 import common_pb2, edge_pb2, edge_pb2_grpc

__all__ = ["MAX_FACES_A_REQUEST", "LayerStore"]

MAX_FACES_A_REQUEST = 256

_NAMES = {
    common_pb2.LAYER_BASIC: "basic",
    common_pb2.LAYER_MIDDLE: "middle",
    common_pb2.LAYER_ENHANCED: "enhanced",
}


class LayerStore(edge_pb2_grpc.LayerStoreServicer):
    """Serves `sfic.v1.LayerStore` from a store."""

    def __init__(
        self, store: FaceStore, grants: GrantBook, audit: AuditLog, metrics: EdgeMetrics
    ) -> None:
        self._store = store
        self._grants = grants
        self._audit = audit
        self._metrics = metrics

    async def FetchLayers(
        self,
        request: edge_pb2.FetchLayersRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> edge_pb2.FetchLayersResponse:
        """Return the layers asked for; reads only, so that asking twice gives the same."""
        if len(request.face_ids) > MAX_FACES_A_REQUEST:
            raise InvalidInput(
                f"face_ids: at most {MAX_FACES_A_REQUEST} in one request, not "
                f"{len(request.face_ids)}",
                field="face_ids",
            )
        for layer in request.layers:
            if layer not in _NAMES:
                raise InvalidInput(f"layers: no layer has the number {layer}", field="layers")
        wanted = [layer for layer in _NAMES if not request.layers or layer in request.layers]
        kept = await self._store.fetch(request.face_ids, [_NAMES[layer] for layer in wanted])
        keys = {} if request.sealed else await self._keys_to_open(kept, wanted)
        response = edge_pb2.FetchLayersResponse()
        for face_id in request.face_ids:
            face = kept.get(face_id)
            if face is not None and not request.sealed and (face_id, wanted[0]) not in keys:
                face = None  # It went between the two readings.
            answer = response.faces.add(face_id=face_id, found=face is not None)
            if face is None:
                continue
            answer.info.CopyFrom(face.info)
            for layer in wanted:
                data = face.layers[_NAMES[layer]]
                if data is not None:
                    if not request.sealed:
                        data = open_layer(keys[face_id, layer], data, face_id, _NAMES[layer])
                    answer.layers.add(layer=layer, data=data)
                    packet_bytes = len(data) - TAG_BYTES * request.sealed
                    self._metrics.fetched_bytes.labels(_NAMES[layer]).inc(packet_bytes)
        return response

    async def FetchKeys(
        self,
        request: edge_pb2.FetchKeysRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> edge_pb2.FetchKeysResponse:
        """Return keys as far as a grant reaches; on the audit log before they go out."""
        highest = request.highest or common_pb2.LAYER_ENHANCED
        if highest not in _NAMES:
            raise InvalidInput(f"highest: no layer has the number {highest}", field="highest")
        for field in ("on_behalf_of", "purpose"):
            if len(getattr(request, field)) > MAX_TEXT:
                raise InvalidInput(f"{field}: at most {MAX_TEXT} characters", field=field)
        face = (await self._store.fetch([request.face_id], [])).get(request.face_id)
        if face is None:
            raise FaceNotKept(
                f"face {request.face_id[:64]} is not kept here", face_id=request.face_id[:64]
            )
        wanted = [layer for layer in _NAMES if layer <= highest]
        return await self._give(face.info, wanted, request.on_behalf_of, request.purpose)

    async def _keys_to_open(
        self, kept: Mapping[str, KeptFace], wanted: Sequence[common_pb2.Layer]
    ) -> dict[tuple[str, common_pb2.Layer], bytes]:
        """Keys of all the faces' layers. Raises `AccessDenied` when one may not be given."""
        keys: dict[tuple[str, common_pb2.Layer], bytes] = {}
        for face_id, face in kept.items():
            given = await self._give(face.info, wanted, "", "")
            if given.refusal:
                raise AccessDenied(given.refusal, face_id=face_id)
            keys.update({(face_id, each.layer): each.key for each in given.keys})
        return keys

    async def _give(
        self,
        face: common_pb2.FaceInfo,
        wanted: Sequence[common_pb2.Layer],
        on_behalf_of: str,
        purpose: str,
    ) -> edge_pb2.FetchKeysResponse:
        """The keys of the layers wanted, lowest first, that the caller may have; audited."""
        caller = current_caller().name
        answer = edge_pb2.FetchKeysResponse()
        may: list[common_pb2.Layer] = []
        for layer in wanted:
            if layer != common_pb2.LAYER_BASIC:
                grant = self._grants.find(face, layer, caller)
                if grant is None:
                    answer.refusal = (
                        f"no grant lets {caller} see the {_NAMES[layer]} layer of face"
                        f" {face.face_id}"
                    )
                    break
                answer.grant_id = grant.grant_id
                purpose = purpose or grant.purpose
            may.append(layer)
        await asyncio.to_thread(
            self._audit.append,
            "refused" if answer.refusal else "reconstruct",
            who=on_behalf_of or caller,
            why=purpose,
            what={
                "face_id": face.face_id,
                "camera_id": face.camera_id,
                "layers": [_NAMES[layer] for layer in may],
                "refused": [_NAMES[layer] for layer in wanted if layer not in may],
                "keys_to": caller,
                "grant_id": answer.grant_id,
            },
        )
        keys = await self._store.keys([face.face_id], [_NAMES[layer] for layer in may])
        for layer in may:
            if (key := keys.get((face.face_id, _NAMES[layer]))) is not None:
                answer.keys.add(layer=layer, key=key)
        return answer
