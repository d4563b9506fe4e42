"""The server around a service: gRPC with limits, health, reflection, metrics, logs and shutdown.

A service is an object with four methods (`Service`); this module runs it. What it serves is its own
business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, start_http_server

from sfic.errors import ConfigError
from sfic.service.access import AccessInterceptor
from sfic.service.addresses import is_loopback, split_address
from sfic.service.interceptor import ErrorInterceptor
from sfic.service.settings import ServiceSettings
from sfic.service.tls import export_expiry, server_credentials
from sfic.service.tracing import start_tracing

__all__ = ["Service", "ServiceServer", "configure_logs", "serve"]

log = structlog.get_logger(__name__)


class Service(Protocol):
    """What a service brings along."""

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of its gRPC services, e.g. "sfic.v1.EdgeIngest"."""

    @property
    def registry(self) -> CollectorRegistry:
        """Its metrics."""

    async def start(self) -> None:
        """Open, load and warm up; calls are taken after it."""

    def register(self, server: grpc.aio.Server) -> None:
        """Add its servicers to the server; called after `start`."""

    async def drain(self) -> None:
        """End long calls in good order; no new ones come."""

    async def close(self) -> None:
        """Let go of everything; no call runs any more. Also called when `start` failed."""


class ServiceServer:
    """One service on its ports. `start`, then `stop`; or as an async context manager."""

    def __init__(
        self,
        service: Service,
        settings: ServiceSettings,
    ) -> None:
        self.service = service
        self.settings = settings
        self.address = ""
        """host:port that calls are taken on, once started."""
        self.metrics_address = ""
        """host:port of the metrics page, once started; empty: none."""
        self._calls = ErrorInterceptor(service.registry)
        if settings.tls_certificate is not None:
            export_expiry(settings.tls_certificate, service.registry)
        self._server = grpc.aio.server(
            interceptors=(self._calls, AccessInterceptor(settings)),
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", int(settings.handshake_seconds * 1000)),
                ("grpc.max_connection_idle_ms", 600_000),
                ("grpc.http2.max_ping_strikes", 2),
            ],
            maximum_concurrent_rpcs=settings.max_calls,
        )
        self._health = health.aio.HealthServicer()
        self._metrics: tuple[Any, Any] | None = None

    async def start(self) -> None:
        """Take the ports, start the service, then take calls.

        Raises `ConfigError` for a port that cannot be had.
        """
        service, settings = self.service, self.settings
        try:
            self.address = self._take_port()
            self._start_metrics()
            await service.start()
            self._register()
            await self._server.start()
        except BaseException:
            # gRPC lets go of the ports only of a server that has run.
            with contextlib.suppress(Exception):
                await self._server.start()
            await self._server.stop(0)
            with contextlib.suppress(Exception):
                await service.close()
            self._stop_metrics()
            raise
        for name in ("", *service.names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info(
            "serving",
            service=settings.service,
            address=self.address,
            metrics=self.metrics_address or None,
            tls=settings.tls_certificate is not None,
        )
        if not is_loopback(self.address) and settings.insecure:
            log.warning(
                "INSECURE: whoever reaches this port sees faces and may do everything",
                address=self.address,
                tls=settings.tls_certificate is not None,
                knows_callers=settings.knows_callers,
            )

    def _register(self) -> None:
        service = self.service
        service.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*service.names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def stop(self, grace_seconds: float | None = None) -> None:
        """Refuse new calls, let running ones end within the grace time, then close the service."""
        grace = self.settings.shutdown_grace_seconds if grace_seconds is None else grace_seconds
        log.info("stopping", service=self.settings.service, grace_seconds=grace)
        await self._health.enter_graceful_shutdown()
        drain = asyncio.ensure_future(self._drain(grace))
        await self._server.stop(grace)
        await drain
        await self.service.close()
        self._stop_metrics()
        log.info("stopped", service=self.settings.service)

    async def __aenter__(self) -> ServiceServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _drain(self, grace: float) -> None:
        """Hurry the server when only watchers of health are left, who never hang up."""

        async def drained() -> None:
            await self.service.drain()
            while self._calls.running:
                await asyncio.sleep(0.02)

        try:
            await asyncio.wait_for(drained(), max(grace, 0.1))
        except asyncio.TimeoutError:
            log.warning("work cut short at shutdown", calls=self._calls.running)
        except Exception:
            log.exception("drain failed")
        else:
            await self._server.stop(min(grace, 1.0))

    def _take_port(self) -> str:
        settings, wanted = self.settings, self.settings.listen
        certificate, key = settings.tls_certificate, settings.tls_key
        try:
            if certificate is None or key is None:
                port = self._server.add_insecure_port(wanted)
            else:
                credentials = server_credentials(certificate, key, settings.tls_client_ca)
                port = self._server.add_secure_port(wanted, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"{settings.service}.listen: cannot listen on {wanted}", field="listen"
            ) from error
        return f"{wanted.rpartition(':')[0]}:{port}"

    def _start_metrics(self) -> None:
        if not self.settings.metrics_listen:
            return
        host, port = split_address(self.settings.metrics_listen)
        try:
            self._metrics = start_http_server(port, addr=host, registry=self.service.registry)
        except OSError as error:
            raise ConfigError(
                f"{self.settings.service}.metrics_listen: cannot listen on "
                f"{self.settings.metrics_listen}: {error.strerror or error}",
                field="metrics_listen",
            ) from error
        self.metrics_address = f"{host}:{self._metrics[0].server_port}"

    def _stop_metrics(self) -> None:
        if self._metrics is not None:
            http_server, thread = self._metrics
            http_server.shutdown()
            http_server.server_close()
            thread.join(5)
            self._metrics = None


def serve(
    make_service: Callable[[], Service],
    settings: ServiceSettings,
    *,
    ready: Callable[[str], Awaitable[None] | None] | None = None,
) -> None:
    """Run a service until SIGTERM or SIGINT, then shut it down in good order.

    `make_service` is called inside the event loop; `ready` with the address once calls are taken.
    """

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        server = ServiceServer(make_service(), settings)
        await server.start()
        if ready is not None and (waiting := ready(server.address)) is not None:
            await waiting
        await stop.wait()
        await server.stop()

    configure_logs(settings)
    with contextlib.ExitStack() as stack:
        if settings.otlp_endpoint:
            stack.callback(start_tracing(settings.service, settings.otlp_endpoint))
        asyncio.run(main())


def configure_logs(settings: ServiceSettings) -> None:
    """Send structured logs to stderr, as JSON or for people; libraries' logs take the same form."""
    form = settings.log_format
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "json"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderers: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
