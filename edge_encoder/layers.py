"""LayerStore: the layers of faces, by face id, for decoders."""

from __future__ import annotations

from typing import Any

import grpc.aio

from edge_encoder.metrics import EdgeMetrics
from edge_encoder.store import FaceStore
from sfic.errors import InvalidInput
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

    def __init__(self, store: FaceStore, metrics: EdgeMetrics) -> None:
        self._store = store
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
        response = edge_pb2.FetchLayersResponse()
        for face_id in request.face_ids:
            face = kept.get(face_id)
            answer = response.faces.add(face_id=face_id, found=face is not None)
            if face is None:
                continue
            answer.info.CopyFrom(face.info)
            for layer in wanted:
                data = face.layers[_NAMES[layer]]
                if data is not None:
                    answer.layers.add(layer=layer, data=data)
                    self._metrics.fetched_bytes.labels(_NAMES[layer]).inc(len(data))
        return response
