"""The console as a process: its parts put together, started and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from typing import Any

import structlog
import uvicorn
from prometheus_client import CollectorRegistry, start_http_server

from console.app import create_app
from console.peers import Peers
from console.settings import ConsoleSettings
from sfic.errors import ConfigError
from sfic.service.addresses import split_address
from sfic.service.server import configure_logs
from sfic.service.tls import export_expiry

__all__ = ["ConsoleServer", "run"]

log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `run`, and to the process that a console is only a part of."""
        yield


class ConsoleServer:
    """One console on its port; an async context manager."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self.settings = settings
        self.address = ""
        """host:port of the page, once started."""
        self.metrics_address = ""
        """host:port of the metrics page, once started; empty: none."""
        self.registry = CollectorRegistry()
        if settings.tls_certificate is not None:
            export_expiry(settings.tls_certificate, self.registry)
        self._stopping = asyncio.Event()
        self._metrics: tuple[Any, Any] | None = None

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http{'s' if self.settings.tls_certificate else ''}://{self.address}"

    async def start(self) -> None:
        """Take the ports and serve. Raises `ConfigError` for a port that cannot be had."""
        settings = self.settings
        taken = self._take_port()
        try:
            self._start_metrics()
        except BaseException:
            taken.close()
            raise
        self._peers = Peers(settings)
        app = create_app(settings, self._peers, self.registry, self._stopping)
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
                access_log=False,
                server_header=False,
                lifespan="off",
                limit_concurrency=settings.max_calls,
                timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_seconds)),
                h11_max_incomplete_event_size=64 * 1024,
            )
        )
        self._serving = asyncio.ensure_future(self._server.serve([taken]))
        while not self._server.started:
            await asyncio.sleep(0.01)
            if self._serving.done():
                await self._serving
        log.info("serving", service="console", url=self.url, metrics=self.metrics_address or None)

    async def stop(self) -> None:
        """End the live streams, let requests finish within the grace time, hang up."""
        log.info("stopping", service="console")
        self._stopping.set()
        self._server.should_exit = True
        await self._serving
        await self._peers.close()
        if self._metrics is not None:
            http_server, thread = self._metrics
            http_server.shutdown()
            http_server.server_close()
            thread.join(5)
        log.info("stopped", service="console")

    async def __aenter__(self) -> ConsoleServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def _take_port(self) -> socket.socket:
        host, port = split_address(self.settings.listen)
        try:
            taken = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except OSError as error:
            raise ConfigError(
                f"console.listen: cannot listen on {self.settings.listen}: "
                f"{error.strerror or error}",
                field="listen",
            ) from error
        self.address = f"{self.settings.listen.rpartition(':')[0]}:{taken.getsockname()[1]}"
        return taken

    def _start_metrics(self) -> None:
        if not self.settings.metrics_listen:
            return
        host, port = split_address(self.settings.metrics_listen)
        try:
            self._metrics = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise ConfigError(
                f"console.metrics_listen: cannot listen on {self.settings.metrics_listen}: "
                f"{error.strerror or error}",
                field="metrics_listen",
            ) from error
        self.metrics_address = f"{host}:{self._metrics[0].server_port}"


def run(settings: ConsoleSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises errors of the tree when it cannot start."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with ConsoleServer(settings):
            await stop.wait()

    configure_logs(settings)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main())
