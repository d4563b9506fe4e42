"""Addresses as settings and the command line name them: "host:port"."""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback", "split_address"]


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port" ("[::1]:port" for IPv6); `ValueError` when it is not one."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be host:port with a port 0..65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether "host:port" can be reached from this machine alone. `ValueError` as above."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
