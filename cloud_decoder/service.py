"""The cloud decoder as a service: its parts put together, and its gRPC methods."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
import structlog
from prometheus_client import CollectorRegistry

from cloud_decoder.cache import LayerCache
from cloud_decoder.layers import LayerSource
from cloud_decoder.metrics import DecoderMetrics
from cloud_decoder.reconstruct import Painter, read_request, reconstruct
from cloud_decoder.settings import DecoderSettings
from sfic.bundles import Codecs
from sfic.codec import Codec
from sfic.errors import LimitExceeded
from sfic.forgetting import follow_forgotten, is_meant
from sfic.pictures import PictureLimits
from sfic.service.access import current_caller
from sfic.service.client import open_channel
from sfic.service.server import serve
from sfic.service.tracing import called_in, span
from sfic.v1 import common_pb2, control_pb2, decoder_pb2, decoder_pb2_grpc

__all__ = ["DecoderService", "run"]

log = structlog.get_logger(__name__)


class DecoderService(decoder_pb2_grpc.CloudDecoderServicer):
    """Answers `sfic.v1.CloudDecoder`; `codec` may be one that is loaded already."""

    names: tuple[str, ...] = ("sfic.v1.CloudDecoder",)

    def __init__(self, settings: DecoderSettings, codec: Codec | None = None) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self._metrics = DecoderMetrics(self.registry)
        self._loaded = codec
        self._limits = PictureLimits(
            max_bytes=settings.max_message_bytes, max_pixels=settings.max_frame_pixels
        )
        self._pool = ThreadPoolExecutor(settings.synthesis_workers, thread_name_prefix="synthesise")
        self._requests = 0

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        decoder_pb2_grpc.add_CloudDecoderServicer_to_server(self, server)

    async def start(self) -> None:
        """Load the codec and warm it up; the edge may still be away."""
        settings = self.settings
        codecs = await asyncio.get_running_loop().run_in_executor(self._pool, self._load_codecs)
        self._codec = codecs.own
        self._painter = Painter(codecs, self._metrics, self._limits, settings.jpeg_quality)
        self._channel = open_channel(settings.edge, identity=settings.edge_identity())
        self._source = LayerSource(
            self._channel,
            settings.edge,
            LayerCache(settings.cache_bytes, settings.cache_seconds),
            self._metrics,
            settings.fetch_seconds,
        )
        self._tasks = [
            asyncio.ensure_future(self._source.expire_for_ever()),
            asyncio.ensure_future(
                follow_forgotten(settings.edge, settings.edge_identity(), (0, ""), self._carry_out)
            ),
        ]
        facts = {
            "model_bundle": codecs.own.model_bundle,
            "second_bundle": "".join(codecs.bundles[1:]),
            "provider": codecs.own.provider,
        }
        self._metrics.info.info(facts)
        log.info("decoder is warm", edge=settings.edge, **facts)

    async def drain(self) -> None:
        """Nothing to hurry: running reconstructions end by themselves within the grace time."""

    async def close(self) -> None:
        """Stop the workers and hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
        await self._channel.close()

    async def _carry_out(self, order: control_pb2.FollowForgottenResponse) -> None:
        self._source.drop_if(lambda face: is_meant(order, face))

    async def Reconstruct(
        self,
        request: decoder_pb2.ReconstructRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[decoder_pb2.ReconstructResponse]:
        """Stream the pictures; see the contract in `decoder.proto`."""
        if self._requests >= self.settings.max_requests:
            raise LimitExceeded(
                f"the decoder has its {self.settings.max_requests} requests already",
                limit=str(self.settings.max_requests),
            )
        self._requests += 1
        self._metrics.requests.set(self._requests)
        pictures = None
        caller = current_caller().name
        try:
            with span("decoder.reconstruct", called_in(context), face_id=request.face_id[:64]):
                wanted = await asyncio.to_thread(
                    read_request, request, self._limits, self._codec.sizes, caller
                )
                log.info(
                    "reconstruction asked for",
                    face_id=wanted.face_id,
                    highest=wanted.levels[-1],
                    size=wanted.size,
                    purpose=wanted.purpose,
                    caller=caller,
                    peer=context.peer(),
                )
                pictures = reconstruct(wanted, self._source, self._painter, self._pool)
                async for response in pictures:
                    self._metrics.pictures.labels(_name(response.level)).inc()
                    yield response
        finally:
            self._requests -= 1
            self._metrics.requests.set(self._requests)
            if pictures is not None:
                await pictures.aclose()

    async def GetDecoderInfo(
        self,
        request: decoder_pb2.GetDecoderInfoRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> decoder_pb2.GetDecoderInfoResponse:
        """Say what the decoder runs on."""
        return decoder_pb2.GetDecoderInfoResponse(
            model_bundle=self._codec.model_bundle,
            provider=self._codec.provider,
            threads=self.settings.threads or os.cpu_count() or 1,
            version=_version(),
            edge=self.settings.edge,
        )

    def _load_codecs(self) -> Codecs:
        settings = self.settings
        codecs = Codecs.load(
            self._loaded or settings.bundle,
            settings.second_bundle,
            provider=settings.provider,
            threads=settings.threads,
        )
        codecs.warm_up("decode")
        return codecs


def run(settings: DecoderSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises errors of the tree when it cannot start."""
    serve(lambda: DecoderService(settings), settings)


def _name(level: int) -> str:
    return str(common_pb2.Layer.Name(level)).removeprefix("LAYER_").lower()


def _version() -> str:
    try:
        return importlib.metadata.version("sfic")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
