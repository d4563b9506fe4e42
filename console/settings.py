"""Settings of the console. Reading them belongs to `sfic.service.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from sfic.service.settings import ServiceSettings, split_address

__all__ = ["ConsoleSettings"]


class ConsoleSettings(ServiceSettings):
    """What a console can be told."""

    service: ClassVar[str] = "console"

    listen: str = Field(
        "127.0.0.1:50080",
        title="Address of the page",
        description="host:port; port 0 takes a free one. 127.0.0.1 keeps strangers out.",
    )
    metrics_listen: str = Field(
        "127.0.0.1:9105",
        title="Address of the Prometheus metrics",
        description="host:port of the HTTP page /metrics; empty: none.",
    )
    max_message_bytes: int = Field(
        32 * 1024 * 1024,
        ge=64 * 1024,
        le=256 * 1024 * 1024,
        title="Largest answer of a service, in bytes",
        description="Also bounds the pictures that a person may send.",
    )
    max_streams_per_connection: int = Field(
        16,
        ge=1,
        le=10_000,
        title="Live views of one person at once",
        description="Further ones are refused.",
    )
    max_calls: int = Field(
        256,
        ge=1,
        le=100_000,
        title="Requests and live views at once",
        description="Further ones are refused with status 503.",
    )
    shutdown_grace_seconds: float = Field(
        5.0,
        ge=0.0,
        le=600.0,
        title="Time to finish work at shutdown, in seconds",
        description="What is still running after it is cancelled.",
    )
    host_names: tuple[str, ...] = Field(
        (),
        title="Names that people call this page by",
        description="Beside the host of `listen` and, on loopback, localhost. A request for any "
        "other name is refused, so that no foreign site can point its own name here.",
    )
    edges: tuple[str, ...] = Field(
        ("127.0.0.1:50051",),
        max_length=1000,
        title="Addresses of the edges",
        description="For the System view's health checks.",
    )
    analytics: str = Field("127.0.0.1:50052", title="Address of analytics")
    decoder: str = Field("127.0.0.1:50053", title="Address of the decoder")
    metrics_pages: tuple[str, ...] = Field(
        ("127.0.0.1:9101", "127.0.0.1:9102", "127.0.0.1:9103"),
        max_length=1000,
        title="Metrics pages of the services",
        description="Each host:port; the System view shows what they say. Empty: none.",
    )
    answer_seconds: float = Field(
        60.0, gt=0.0, le=600.0, title="Longest wait for a service's answer, in seconds"
    )
    preview_size: int = Field(
        128,
        ge=16,
        le=1024,
        title="Side of the small pictures, in pixels",
        description="One that the decoder's model bundle makes.",
    )
    previews_at_once: int = Field(
        8,
        ge=1,
        le=64,
        title="Small pictures asked of the decoder at once",
        description="Over all people, so that a full picture never waits long.",
    )
    bundle: Path | None = Field(
        None,
        title="Model bundle for searching by a picture",
        description="Unset: the one that ships with the package.",
    )

    @field_validator("edges", "metrics_pages")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            split_address(address)
        return value

    @field_validator("analytics", "decoder")
    @classmethod
    def _is_address(cls, value: str) -> str:
        split_address(value)
        return value
