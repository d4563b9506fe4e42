"""Two network namespaces with a link between them that delays every packet and loses some.

The packets go through this process (a TUN device at each end), so that neither `tc netem` nor its
kernel module is needed; being root is.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import pytest
from typing_extensions import Self

__all__ = ["LossyLink"]

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_LONGEST_WAIT = 0.05


class LossyLink:
    """Ends "edge" and "cloud"; a context manager. Skips the test where it cannot be made."""

    def __init__(self, *, loss: float, delay_seconds: float, seed: int = 1) -> None:
        """`loss`: part of all packets; `delay_seconds`: in each direction."""
        self.addresses = {"edge": "10.77.0.1", "cloud": "10.77.0.2"}
        self.passed = self.lost = 0
        self._loss, self._delay = loss, delay_seconds
        self._chance = random.Random(seed)
        self._devices: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, daemon=True)

    def command(self, end: str, words: Sequence[str]) -> list[str]:
        """A command as it is run at one end."""
        return ["ip", "netns", "exec", self._namespace(end), *words]

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        try:
            for end, other in (("edge", "cloud"), ("cloud", "edge")):
                self._make(end, other)
        except (OSError, subprocess.CalledProcessError) as error:
            self._remove()
            pytest.skip(f"no network namespaces or TUN devices here: {error}")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._remove()

    def _namespace(self, end: str) -> str:
        return f"sfic-{os.getpid()}-{end}"

    def _make(self, end: str, other: str) -> None:
        namespace, device = self._namespace(end), f"sf{os.getpid()}{end[0]}"
        _ip("netns", "add", namespace)
        self._devices[end] = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        asked = struct.pack("16sH", device.encode(), _IFF_TUN_NO_PI)
        fcntl.ioctl(self._devices[end], _TUNSETIFF, asked)
        _ip("link", "set", device, "netns", namespace)
        peer = ["peer", self.addresses[other], "dev", device]
        _ip("-n", namespace, "addr", "add", self.addresses[end], *peer)
        for name in (device, "lo"):
            _ip("-n", namespace, "link", "set", name, "up")

    def _remove(self) -> None:
        for end, device in self._devices.items():
            os.close(device)
            subprocess.run(["ip", "netns", "del", self._namespace(end)], capture_output=True)

    def _pass_on(self) -> None:
        edge, cloud = self._devices["edge"], self._devices["cloud"]
        far = {edge: cloud, cloud: edge}
        order = itertools.count()
        under_way: list[tuple[float, int, int, bytes]] = []
        while not self._stop.is_set():
            wait = under_way[0][0] - time.monotonic() if under_way else _LONGEST_WAIT
            near, _, _ = select.select([*far], [], [], min(max(wait, 0.0), _LONGEST_WAIT))
            for device in near:
                packet = os.read(device, 65_536)
                self.passed += 1
                if self._chance.random() < self._loss:
                    self.lost += 1
                    continue
                due = time.monotonic() + self._delay
                heapq.heappush(under_way, (due, next(order), far[device], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, device, packet = heapq.heappop(under_way)
                os.write(device, packet)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
