"""Settings of the console. Reading them belongs to `sfic.service.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from sfic.service.addresses import is_loopback, split_address
from sfic.service.identity import Identity
from sfic.service.settings import ServiceSettings

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
        description="For health checks, grants, forgetting and the audit log.",
    )
    analytics: str = Field("127.0.0.1:50052", title="Address of analytics")
    decoder: str = Field("127.0.0.1:50053", title="Address of the decoder")
    metrics_pages: tuple[str, ...] = Field(
        ("127.0.0.1:9101", "127.0.0.1:9102", "127.0.0.1:9103"),
        max_length=1000,
        title="Metrics pages of the services",
        description="Each host:port; the System view shows what they say. Empty: none.",
    )
    services_ca: Path | None = Field(
        None,
        title="CA of the services' certificates, PEM",
        description="Set: services are called over TLS, and see tls_certificate as ours.",
    )
    answer_seconds: float = Field(
        60.0, gt=0.0, le=600.0, title="Longest wait for a service's answer, in seconds"
    )
    grant_hours: float = Field(
        1.0,
        gt=0.0,
        le=8760.0,
        title="How long a grant holds that is made on a face's page, in hours",
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

    def services_identity(self) -> Identity:
        """How the services are called; the person's token comes with each call."""
        shown = (self.tls_certificate, self.tls_key) if self.services_ca else (None, None)
        return Identity(self.services_ca, *shown)

    @model_validator(mode="after")
    def _people_sign_in_with_tokens(self) -> Self:
        if self.tls_client_ca is not None:
            raise ValueError("tls_client_ca: people sign in with tokens; set token_key")
        away = [a for a in (*self.edges, self.analytics, self.decoder) if not is_loopback(a)]
        if self.token_key is not None and self.services_ca is None and away:
            raise ValueError(f"tokens are not sent to {away[0]} without TLS: set services_ca")
        return self

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
