"""Traces, from a camera's frame to the picture of a face, with OpenTelemetry (extra `otel`).

Belongs here: spans, and where they hang together: a call's `traceparent` metadata (W3C Trace
Context), and `FaceInfo.trace_context`, by which whatever is done to a face later joins the trace of
its frame. Does not belong here: what is worth a span. A span carries ids and numbers, never a
picture or an embedding. Until `start_tracing` all of it does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc.aio
import structlog

from sfic.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

__all__ = ["call_metadata", "called_in", "note_span", "span", "start_tracing", "use_tracer"]

_HEADER = "traceparent"
_current: ContextVar[str] = ContextVar("traceparent", default="")
_tracer: Tracer | None = None


def start_tracing(service: str, endpoint: str) -> Callable[[], None]:
    """Send the spans of this process to an OTLP collector; returns what sends the rest at the end.

    `endpoint`: http://host:port, or https://. Raises `MissingExtra`.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra(
            "otlp_endpoint needs OpenTelemetry: pip install 'sfic[otel]'", extra="otel"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": f"sfic-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    use_tracer(provider.get_tracer("sfic"))
    return provider.shutdown


def use_tracer(tracer: Tracer | None) -> None:
    """Make the spans of this process with a tracer; None: make none."""
    global _tracer
    _tracer = tracer


@contextlib.contextmanager
def span(name: str, parent: str = "", **facts: Any) -> Iterator[str]:
    """A span around the block; yields what children and stored faces name it by, "" without one.

    `parent` is such a name; a span around the block is linked then. Without a parent it is a child
    of the span around it, or the first of a trace. Log lines inside the block carry its trace id.
    """
    if _tracer is None:
        yield ""
        return
    from opentelemetry.trace import Link, Status, StatusCode, format_trace_id, get_current_span

    around = _current.get()
    linked = bool(parent and around)
    made = _tracer.start_span(
        name,
        context=_context(parent or around),
        links=[Link(get_current_span(_context(around)).get_span_context())] if linked else [],
        attributes=_attributes(facts),
    )
    known = made.get_span_context()
    trace_id = format_trace_id(known.trace_id)
    named = f"00-{trace_id}-{known.span_id:016x}-{int(known.trace_flags):02x}"
    bound = structlog.contextvars.get_contextvars().get("trace_id")
    # Set back by hand: a stream that is given up ends in another context than it began in.
    _current.set(named)
    structlog.contextvars.bind_contextvars(trace_id=trace_id)
    try:
        yield named
    except Exception as error:
        made.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        made.end()
        _current.set(around)
        structlog.contextvars.unbind_contextvars("trace_id")
        if bound is not None:
            structlog.contextvars.bind_contextvars(trace_id=bound)


def note_span(name: str, parent: str, start_ns: int, end_ns: int, **facts: Any) -> None:
    """A span of something that is over, by Unix nanoseconds; none without a parent."""
    if _tracer is not None and parent:
        made = _tracer.start_span(
            name, context=_context(parent), start_time=start_ns, attributes=_attributes(facts)
        )
        made.end(end_ns)


def called_in(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The span that a call was made in, as its metadata names it; "" when it does not."""
    if _tracer is None:
        return ""
    for key, value in context.invocation_metadata() or ():
        if key == _HEADER:
            return str(value)
    return ""


def call_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata for a call, so that the other side's span is a child of the one around it."""
    current = _current.get()
    return ((_HEADER, current),) if current else ()


def _context(named: str) -> Context:
    """What OpenTelemetry makes of a name; nothing of one that is malformed."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({_HEADER: named}, context=Context())


def _attributes(facts: dict[str, Any]) -> dict[str, Any]:
    return {f"sfic.{name}": value for name, value in facts.items()}
