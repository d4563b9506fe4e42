"""The last release on the wire: messages of proto/sfic.v1.binpb, and nothing that came after it.

`OldStub` calls as a client of that release does. `OldServer` stands between a client of today and a
service of today and lets through what the last release knew: fields that came later are dropped in
both directions, methods that came later are UNIMPLEMENTED, as a server of that release would do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

BASELINE = Path(__file__).parent.parent / "proto" / "sfic.v1.binpb"


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes()).file:
        pool.Add(file)
    return pool


POOL = _pool()
SERVICES = sorted(
    f"{file.package}.{service.name}"
    for file in descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes()).file
    for service in file.service
)


def message(name: str) -> Any:
    """The class of a message of the last release, by its name in sfic.v1."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"sfic.v1.{name}"))


def _only_known(data: bytes, kind: Any) -> bytes:
    """What is left of a message when a peer of the last release has read and written it."""
    read = kind.FromString(data)
    read.DiscardUnknownFields()
    written: bytes = read.SerializeToString()
    return written


class OldStub:
    """Methods of a service, as attributes, with messages of the last release."""

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        for method in POOL.FindServiceByName(f"sfic.v1.{service}").methods:
            kind = (
                f"{'stream' if method.client_streaming else 'unary'}_"
                f"{'stream' if method.server_streaming else 'unary'}"
            )
            answer = message_factory.GetMessageClass(method.output_type)
            call = getattr(channel, kind)(
                f"/sfic.v1.{service}/{method.name}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the last release had no method {name}")


class OldServer:
    """A service of the last release in front of `target`; an async context manager."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers(tuple(map(self._handler, SERVICES)))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> OldServer:
        await self._server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.stop(0)
        await self._channel.close()

    def _handler(self, service: str) -> grpc.GenericRpcHandler:
        methods = POOL.FindServiceByName(service).methods
        return grpc.method_handlers_generic_handler(
            service, {method.name: self._method(service, method) for method in methods}
        )

    def _method(self, service: str, method: Any) -> Any:
        path = f"/{service}/{method.name}"
        asked = message_factory.GetMessageClass(method.input_type)
        answered = message_factory.GetMessageClass(method.output_type)

        async def requests(incoming: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            async for data in incoming:
                yield _only_known(data, asked)

        async def call(request: Any, context: Any) -> AsyncIterator[bytes]:
            if method.client_streaming:
                answers = self._channel.stream_stream(path)(requests(request))
            else:
                answers = self._channel.unary_stream(path)(_only_known(request, asked))
            try:
                await context.send_initial_metadata(())
                async for data in answers:
                    yield _only_known(data, answered)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details(), error.trailing_metadata())
            finally:
                answers.cancel()

        # On the wire one answer and a stream of one are the same.
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(call)
        return grpc.unary_stream_rpc_method_handler(call)
