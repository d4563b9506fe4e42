"""A TCP link between services that can be cut and healed, as an uplink is."""

from __future__ import annotations

import asyncio
import contextlib

__all__ = ["CutLink"]


class CutLink:
    """Passes TCP on to `target` ("host:port") from `address`; an async context manager.

    `cut` stops every byte without a word to either end, as a dead uplink does; `reset` ends every
    connection and refuses new ones, as a restarted router does; `heal` undoes both.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.address = ""
        self.cuts = 0
        self._flowing = asyncio.Event()
        self._refusing = False
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> CutLink:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._flowing.set()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self._drop_all()

    def cut(self) -> None:
        """Let nothing through; what was sent before may have arrived or not."""
        self.cuts += 1
        self._flowing.clear()

    def reset(self) -> None:
        """End every connection, and every new one at once."""
        self.cuts += 1
        self._refusing = True
        self._drop_all()

    def heal(self) -> None:
        """Let everything through again."""
        self._refusing = False
        self._flowing.set()

    def _drop_all(self) -> None:
        for connection in self._connections:
            connection.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # A cancelled connection is an ended one; its ends learn it from TCP.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                if not self._refusing:
                    await self._join(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        directions = [
            asyncio.ensure_future(self._pass_on(reader, far_writer)),
            asyncio.ensure_future(self._pass_on(far_reader, writer)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            far_writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
