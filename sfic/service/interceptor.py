"""The interceptor of every service: errors of the tree become gRPC statuses, and calls are counted.

A status carries `google.rpc.ErrorInfo` with the error's stable code as `reason` and its details as
`metadata`, so that `sfic.service.client` can raise the same error again; one that says when to try
again (`retry_seconds`) has `google.rpc.RetryInfo` as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sfic.errors import SficError
from sfic.service.tracing import called_in, span

__all__ = ["ErrorInterceptor", "error_status", "wrap_handler"]

log = structlog.get_logger(__name__)

ERROR_DOMAIN = "sfic"
# Counted from 0 on, so that an alert on their increase sees the first one.
_FAULTS = ("INTERNAL", "DATA_LOSS")
# Trailing metadata over 8 KiB is refused by gRPC peers.
_LONGEST_TEXT = 1000


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Wraps every handler; see the module."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.running = 0
        """Calls of the service itself that run now; health and reflection are not counted."""
        self._calls = Counter(
            "sfic_grpc_calls_total", "gRPC calls ended.", ["method", "code"], registry=registry
        )
        self._running = Gauge(
            "sfic_grpc_calls_running", "gRPC calls running.", ["method"], registry=registry
        )
        self._seconds = Histogram(
            "sfic_grpc_call_seconds", "Duration of gRPC calls.", ["method"], registry=registry
        )

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler that was found for the call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        for code in _FAULTS:
            self._calls.labels(method, code)
        return wrap_handler(
            handler,
            lambda inner: self._wrap_unary(method, inner),
            lambda inner: self._wrap_stream(method, inner),
        )

    def _wrap_unary(self, method: str, inner: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with (
                span(method.removeprefix("/"), called_in(context)),
                _Watch(self, method, context) as watch,
            ):
                try:
                    return await inner(request, context)
                except Exception as error:
                    await watch.fail(error)

        return call

    def _wrap_stream(self, method: str, inner: Any) -> Any:
        async def call(
            request: Any, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            with _Watch(self, method, context) as watch:
                try:
                    result = inner(request, context)
                    if hasattr(result, "__aiter__"):
                        async for response in result:
                            yield response
                    else:
                        await result
                except Exception as error:
                    await watch.fail(error)

        return call


def wrap_handler(
    handler: grpc.RpcMethodHandler[Any, Any],
    wrap_unary: Callable[[Any], Any],
    wrap_stream: Callable[[Any], Any],
) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler with its function wrapped, by whether it answers with one message or a stream."""
    kind = (
        f"{'stream' if handler.request_streaming else 'unary'}_"
        f"{'stream' if handler.response_streaming else 'unary'}"
    )
    wrap = wrap_stream if handler.response_streaming else wrap_unary
    make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(
        wrap(getattr(handler, kind)),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


class _Watch:
    """Counts one call and ends it with a status when it fails."""

    def __init__(
        self,
        owner: ErrorInterceptor,
        method: str,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        self._owner = owner
        self._method = method
        self._context = context
        self._counts = int(not method.startswith("/grpc."))
        self._code = "OK"

    def __enter__(self) -> _Watch:
        self._start = time.perf_counter()
        self._owner.running += self._counts
        self._owner._running.labels(self._method).inc()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError | GeneratorExit):
            self._code = "CANCELLED"
        self._owner.running -= self._counts
        self._owner._running.labels(self._method).dec()
        self._owner._calls.labels(self._method, self._code).inc()
        self._owner._seconds.labels(self._method).observe(time.perf_counter() - self._start)

    async def fail(self, error: Exception) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            self._code = "ABORTED_BY_HANDLER"
            raise error
        if not isinstance(error, SficError):
            log.error("call failed", method=self._method, exc_info=error)
            error = SficError("internal error; the server's log has it")
        else:
            log.info("call refused", method=self._method, code=error.code, reason=error.message)
        self._code = error.grpc_status
        status = error_status(error)
        await self._context.abort(
            grpc.StatusCode[error.grpc_status],
            status.message,
            trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
        )
        raise AssertionError("abort raises")


def error_status(error: SficError) -> status_pb2.Status:
    """Return the `google.rpc.Status` of an error, with its code and details."""
    info = error_details_pb2.ErrorInfo(
        reason=error.code,
        domain=ERROR_DOMAIN,
        metadata={key: str(value)[:_LONGEST_TEXT] for key, value in error.details.items()},
    )
    details = [any_pb2.Any()]
    details[0].Pack(info)
    if "retry_seconds" in error.details:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(float(error.details["retry_seconds"]) * 1e9))
        details.append(any_pb2.Any())
        details[1].Pack(retry)
    code: int = grpc.StatusCode[error.grpc_status].value[0]
    return status_pb2.Status(code=code, message=error.message[:_LONGEST_TEXT], details=details)
