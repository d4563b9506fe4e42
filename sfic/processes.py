"""The services as child processes: start, wait until they take calls, stop.

What belongs here: what `sfic serve all` and `sfic demo` share. The services are started as a user
starts them (`sfic serve NAME`) and asked over their own health checks; nothing of them is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sfic.errors import SficError, Unavailable
from sfic.healthcheck import serves, serves_page
from sfic.service.identity import Identity

__all__ = ["ServiceGroup", "free_address"]


@dataclass
class _Child:
    name: str
    address: str
    process: subprocess.Popen[bytes]
    log: Path | None
    identity: Identity | None = None
    page: bool = False
    ready: bool = False

    def serves(self) -> bool:
        if self.page:
            tls = self.identity is not None and self.identity.ca is not None
            return serves_page(self.address, 0.5, tls)
        return serves(self.address, 0.5, self.identity)


class ServiceGroup:
    """Services that live and die together; a context manager that stops them at its end."""

    def __init__(self, log_directory: Path | None = None) -> None:
        """`log_directory`: each service logs to NAME.log there; None: to our own stderr."""
        self._log_directory = log_directory
        self._children: list[_Child] = []

    def start(
        self,
        name: str,
        address: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        identity: Identity | None = None,
        page: bool = False,
    ) -> None:
        """Start `sfic serve NAME ARGUMENTS`, which is to take calls on `address`.

        `identity`: as whom its health is asked; None: without TLS. `page`: it is asked as a page.
        """
        log = self._log_directory / f"{name}.log" if self._log_directory else None
        with contextlib.ExitStack() as stack:
            stderr: IO[Any] | None = stack.enter_context(log.open("wb")) if log else None
            process = subprocess.Popen(
                [sys.executable, "-m", "sfic", "serve", name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
            )
        self._children.append(_Child(name, address, process, log, identity, page))

    def wait_ready(
        self, timeout_seconds: float, on_ready: Callable[[str], None] = lambda name: None
    ) -> None:
        """Return when all take calls; `on_ready` gets each name as it does.

        Raises Unavailable when one ends, or is not ready in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while not all(child.ready for child in self._children):
            self.check()
            for child in self._children:
                if not child.ready and child.serves():
                    child.ready = True
                    on_ready(child.name)
            if time.monotonic() > deadline:
                late = ", ".join(child.name for child in self._children if not child.ready)
                raise Unavailable(f"not ready after {timeout_seconds:.0f} s: {late}")
            time.sleep(0.1)

    def check(self) -> None:
        """Raise when a service has ended: with its own message and exit code where it left one."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise _ended(child, code)

    def wait_for_any(self) -> None:
        """Return never; raises as `check` does once a service ends."""
        while True:
            self.check()
            time.sleep(0.2)

    def stop(self, grace_seconds: float = 25.0) -> None:
        """Ask all to end, wait, and kill what is left after the grace time."""
        for child in self._children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        for child in self._children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def __enter__(self) -> ServiceGroup:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def free_address() -> str:
    """A loopback address "127.0.0.1:port" that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _ended(child: _Child, code: int) -> SficError:
    last = next(_last_lines(child.log), "") if child.log else ""
    error = Unavailable(f"the {child.name} service ended ({code}){': ' if last else ''}{last}")
    return error


def _last_lines(log: Path) -> Iterator[str]:
    """What the log says last, newest first; of a structured line only the event."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if line.strip():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                line = str(record.get("event", line)) if isinstance(record, dict) else line
            yield line.removeprefix("sfic: ")
