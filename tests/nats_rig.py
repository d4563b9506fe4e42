"""What tests over NATS share: real servers, a hub with the leaves of two sites, and their links."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from sfic.processes import free_address
from sfic.service.streams import FACES, RESULTS, make_streams

SERVER = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")
SITES = ("store-7", "store-8")


class NatsServer:
    """One nats-server with its store, which a restart keeps."""

    def __init__(
        self, folder: Path, config: Path, address: str, environment: dict[str, str] | None = None
    ) -> None:
        self.address = address
        self._log = folder / f"{config.stem}-{address.rpartition(':')[2]}.log"
        self._config = config
        self._environment = environment
        self._process: subprocess.Popen[bytes]
        self.start()

    @property
    def url(self) -> str:
        return f"nats://{self.address}"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def ready(self) -> bool:
        assert self._process.poll() is None, self.log
        return "Server is ready" in self.log

    def start(self) -> None:
        assert SERVER is not None
        self._process = subprocess.Popen(
            [SERVER, "-c", str(self._config), "-l", str(self._log)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        self.end()
        self._process.wait(20)

    def end(self) -> None:
        """Begin to stop."""
        self._process.terminate()


class Link:
    """The way of leaves to the hub: TCP that is passed on, until it is cut."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._up = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._server = await asyncio.start_server(self._accept, host, int(port))

    def close(self) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Ends what runs and takes nothing new."""
        self._up = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def heal(self) -> None:
        self._up = True

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if self._up:
                onward = await asyncio.open_connection(self._host, self._port)
                self._writers |= {writer, onward[1]}
                await asyncio.gather(
                    self._pass_on(reader, onward[1]), self._pass_on(onward[0], writer)
                )
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


class Backbone:
    """A hub and the leaf of each site; `linked`: each behind a link of its own."""

    def __init__(self, folder: Path, *, linked: bool = False) -> None:
        self.links: dict[str, Link] = {}
        self._leaves_at = free_address()
        self._ways = {site: free_address() if linked else self._leaves_at for site in SITES}
        self._linked = linked
        self.store = folder
        # What the hub tells leaves of itself must not lead them around their links: nobody listens
        # there.
        told = 'advertise: "127.0.0.1:1"' if linked else ""
        self.hub = self._server(
            folder, "hub", f'leafnodes {{ listen: "{self._leaves_at}"\n{told} }}'
        )
        self.leaves = {
            site: self._server(
                folder,
                site,
                f'leafnodes {{ reconnect: 1, remotes: [{{ url: "nats://{self._ways[site]}" }}] }}',
            )
            for site in SITES
        }

    def _server(self, folder: Path, name: str, leafnodes: str) -> NatsServer:
        config, address = folder / f"{name}.conf", free_address()
        config.write_text(
            f'server_name: {name}\nlisten: "{address}"\n{leafnodes}\n'
            f'jetstream {{ domain: {name}, store_dir: "{folder / name}" }}\n'
        )
        return NatsServer(folder, config, address)

    def stop(self) -> None:
        servers = (self.hub, *self.leaves.values())
        for server in servers:
            server.end()
        for server in servers:
            server.stop()

    @asynccontextmanager
    async def open(self, **values: Any) -> AsyncIterator[Client]:
        """Links up and streams fresh; gives a connection to the hub. `values`: of the streams."""
        async with contextlib.AsyncExitStack() as stack:
            for site in SITES if self._linked else ():
                self.links[site] = link = Link(self._leaves_at)
                await link.listen(self._ways[site])
                stack.callback(link.close)
            connection = await stack.enter_async_context(connection_to(self.hub))
            await self._make_streams(connection, values)
            yield connection

    async def _make_streams(self, connection: Client, values: dict[str, Any]) -> None:
        for _ in range(100):
            try:
                for domain in (*SITES, None):
                    jetstream = connection.jetstream(domain=domain, timeout=1)
                    for stream in (FACES, RESULTS):
                        with contextlib.suppress(NotFoundError):
                            await jetstream.delete_stream(stream)
                break
            except (nats.errors.Error, asyncio.TimeoutError):
                await asyncio.sleep(0.1)  # A leaf is not connected yet.
        await make_streams(
            connection, SITES, **{"keep_hours": 1.0, "site_bytes": 1 << 30, **values}
        )
        for domain in (*SITES, None):
            jetstream = connection.jetstream(domain=domain)
            config = (await jetstream.stream_info(FACES)).config
            config.duplicate_window = 1.0
            await jetstream.update_stream(config)


@asynccontextmanager
async def connection_to(server: NatsServer, **options: Any) -> AsyncIterator[Client]:
    """A connection of the test's own; waits until the server is there."""

    async def quiet(_: Exception) -> None: ...

    connection = await nats.connect(
        server.url, error_cb=quiet, max_reconnect_attempts=-1, reconnect_time_wait=0.1, **options
    )
    try:
        yield connection
    finally:
        await connection.close()


async def messages_of(
    connection: Client, stream: str, domain: str | None = None
) -> list[nats.js.api.RawStreamMsg]:
    """All that is in a stream."""
    jetstream = connection.jetstream(domain=domain)
    state = (await jetstream.stream_info(stream)).state
    found = []
    for sequence in range(state.first_seq, state.last_seq + 1):
        with contextlib.suppress(NotFoundError):
            found.append(await jetstream.get_msg(stream, sequence))
    return found


def running_backbone(folder: Path, *, linked: bool = False) -> Iterator[Backbone]:
    """For a fixture."""
    backbone = Backbone(folder, linked=linked)
    try:
        yield backbone
    finally:
        backbone.stop()


class NatsKey:
    """A key pair as NATS names it, and the tokens that it signs: what nsc makes in the field."""

    _KINDS = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
    _SEED = 18 << 3

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._private = Ed25519PrivateKey.generate()
        prefix = self._KINDS[kind]
        self.public = self._text(bytes([prefix]) + self._private.public_key().public_bytes_raw())
        self.seed = self._text(
            bytes([self._SEED | prefix >> 5, (prefix & 31) << 3])
            + self._private.private_bytes_raw()
        )

    @staticmethod
    def _text(data: bytes) -> str:
        check = binascii.crc_hqx(data, 0).to_bytes(2, "little")
        return base64.b32encode(data + check).decode().rstrip("=")

    def token(self, of: NatsKey) -> str:
        """A JWT in which this key vouches for another."""
        claims = {
            "jti": of.public,
            "iat": 1_700_000_000,
            "iss": self.public,
            "name": of._kind,
            "sub": of.public,
            "nats": {"type": of._kind, "version": 2},
        }
        if of._kind == "account":
            # No limits; 0 would allow nothing.
            names = ("subs", "data", "payload", "conn", "leaf", "imports", "exports")
            stores = ("mem_storage", "disk_storage", "streams", "consumer")
            claims["nats"]["limits"] = {**dict.fromkeys((*names, *stores), -1), "wildcards": True}
        if of._kind == "user":
            claims["nats"] |= {"subs": -1, "data": -1, "payload": -1}
        parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, claims]
        signed = ".".join(_url64(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{_url64(self._private.sign(signed.encode()))}"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
