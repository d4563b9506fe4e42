"""Settings of the analytics service. Reading them belongs to `sfic.service.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from sfic.service.addresses import split_address
from sfic.service.settings import EdgeClientSettings

__all__ = ["AnalyticsSettings"]


class AnalyticsSettings(EdgeClientSettings):
    """Everything that can be set; a default says what a single machine needs."""

    service: ClassVar[str] = "analytics"

    listen: str = Field("127.0.0.1:50052", title="Address of the gRPC server")
    metrics_listen: str = Field("127.0.0.1:9102", title="Address of the Prometheus metrics")
    edges: tuple[str, ...] = Field(
        ("127.0.0.1:50051",),
        min_length=1,
        max_length=1000,
        title="Addresses of the edges whose basic layers are read",
        description="Each is host:port; an edge's place in its feed is kept by this address.",
    )
    camera_ids: tuple[str, ...] = Field(
        (), title="Only faces of these cameras", description="Empty: all."
    )
    min_face_score: float = Field(
        0.0, ge=0.0, le=1.0, title="Only faces of at least this face score"
    )
    database: Path = Field(
        Path("~/.local/share/sfic/analytics/analytics.sqlite"),
        title="Database of results",
        description="Made when it is not there. Two services never share one.",
    )
    retention_days: float = Field(
        30.0, gt=0.0, le=3650.0, title="Time that results are kept, in days"
    )
    max_results: int = Field(
        1_000_000,
        ge=1,
        le=20_000_000,
        title="Results kept at most, the newest stay",
        description="All are searched in memory: a million of 256 dimensions take 1 GB.",
    )
    retention_check_seconds: float = Field(
        60.0, gt=0.0, le=86_400.0, title="Time between two checks of retention, in seconds"
    )
    batch_faces: int = Field(
        64, ge=1, le=64, title="Faces analysed at once at most", description="No face waits for it."
    )
    queue_faces: int = Field(
        512,
        ge=1,
        le=100_000,
        title="Faces received and not yet analysed, at most",
        description="A full queue makes the edges wait.",
    )
    reconnect_seconds: float = Field(
        10.0, gt=0.0, le=600.0, title="Longest wait before connecting to an edge again, in seconds"
    )
    provider: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        title="Where the networks run",
        description="Task heads are small and take the CPU; cuda that is not there is an error "
        "all the same.",
    )
    threads: int = Field(
        0, ge=0, le=256, title="Threads of the networks", description="0: one for each core."
    )
    bundle: Path | None = Field(
        None, title="Model bundle", description="Unset: the one that ships with the package."
    )

    @field_validator("edges")
    @classmethod
    def _edges_are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            split_address(address)
        if len(set(value)) != len(value):
            raise ValueError("must not name an edge twice")
        return value
