"""Settings of the analytics service. Reading them belongs to `sfic.service.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from sfic.service.addresses import split_address
from sfic.service.settings import EdgeClientSettings, NatsSettings

__all__ = ["AnalyticsSettings", "WebhookSettings"]


class WebhookSettings(BaseModel):
    """One webhook; see docs/analytics.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        title="Name of the hook; its place in the log is kept by it",
    )
    url: str = Field(
        max_length=2000, title="Where to post", description="https; http only to this machine."
    )
    secret_file: Path = Field(
        title="File with the secret that signs",
        description="whsec_ and 24 to 64 bytes in base64, as Standard Webhooks has it.",
    )
    sends: Literal["results", "alerts"] = Field("alerts", title="What is posted")
    camera_ids: tuple[str, ...] = Field((), title="Only faces of these cameras; empty: all")

    @field_validator("url")
    @classmethod
    def _url_is_safe(cls, value: str) -> str:
        parts = urlsplit(value)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if not parts.hostname or parts.scheme not in ("https", "http"):
            raise ValueError("must be an https address")
        if parts.scheme == "http" and not local:
            raise ValueError("must be https: faces do not travel in the clear")
        return value


class AnalyticsSettings(EdgeClientSettings, NatsSettings):
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
        description="All are searched in memory: a million of 128 dimensions take 1 GB.",
    )
    retention_bytes: int = Field(
        10 * 1024**3,
        ge=1024**2,
        title="Size of the database at which the oldest results are dropped, in bytes",
    )
    min_trusted_score: float = Field(
        0.25,
        ge=0.0,
        le=1.0,
        title="Faces less usable than this are unknown",
        description="By the edge's face score and by the one read from the basic layer. Of an "
        "unknown face nothing is guessed.",
    )
    keep_parsing: bool = Field(
        False,
        title="Keep the parsing map of each face",
        description="64x64 classes, some 300 bytes a face. What each class covers is kept anyway.",
    )
    visit_gap_seconds: float = Field(
        30.0,
        gt=0.0,
        le=86_400.0,
        title="Longest time between two faces of a visit, in seconds",
        description="Who comes back to a camera later than this makes a new visit.",
    )
    visit_similarity: float | None = Field(
        None,
        ge=-1.0,
        le=1.0,
        title="Cosine from which a face belongs to a visit",
        description="Compared with the mean of the visit's faces. Unset: where the model bundle "
        "has one person as likely as two; 0.5 with one that was not calibrated.",
    )
    watchlists: bool = Field(
        False,
        title="Look for the faces of watchlists",
        description="Off, because it identifies persons: docs/analytics.md says what that asks of "
        "you.",
    )
    watchlist_entry_days: float = Field(
        30.0,
        gt=0.0,
        le=3650.0,
        title="Time that an entry of a watchlist is kept, in days",
        description="Where the entry names no time itself.",
    )
    watchlist_entries: int = Field(
        10_000, ge=1, le=1_000_000, title="Entries of all watchlists together, at most"
    )
    webhooks: tuple[WebhookSettings, ...] = Field(
        (),
        max_length=32,
        title="Where results or alerts are posted to",
        description="A list of tables: name, url, secret_file, sends, camera_ids.",
    )
    max_picture_bytes: int = Field(
        8 * 1024 * 1024,
        ge=1024,
        title="Largest example picture, in bytes",
        description="It has to fit into max_message_bytes.",
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
    live_backlog_results: int = Field(
        1024,
        ge=1,
        title="Results that a live subscriber may lag behind",
        description="Over it the oldest are dropped for that subscriber, who is told how many. One "
        "who reads from a cursor gets all.",
    )
    reconnect_seconds: float = Field(
        10.0, gt=0.0, le=600.0, title="Longest wait before connecting to an edge again, in seconds"
    )
    nats_ack_seconds: float = Field(
        60.0,
        ge=1.0,
        le=3600.0,
        title="Time until a face goes to another replica, in seconds",
        description="When the one that took it over NATS has not answered for it.",
    )
    provider: Literal["auto", "cpu", "openvino", "cuda"] = Field(
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
    second_bundle: Path | None = Field(
        None,
        title="Second model bundle that faces may be of",
        description="During a change of bundles; see docs/runbook.md. Faces of it are analysed, "
        "and not compared with those of `bundle`.",
    )

    @field_validator("edges")
    @classmethod
    def _edges_are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            split_address(address)
        if len(set(value)) != len(value):
            raise ValueError("must not name an edge twice")
        return value

    @model_validator(mode="after")
    def _hooks_fit(self) -> Self:
        names = [hook.name for hook in self.webhooks]
        if len(set(names)) != len(names):
            raise ValueError("webhooks: a name is there twice")
        if not self.watchlists and any(hook.sends == "alerts" for hook in self.webhooks):
            raise ValueError("webhooks: alerts are sent only with watchlists = true")
        return self
