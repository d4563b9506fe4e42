"""Settings of the edge. Reading them, and those of all services: `sfic.service.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from sfic.service.settings import NatsSettings

__all__ = ["MESSAGE_OVERHEAD_BYTES", "NAME_PATTERN", "EdgeSettings"]

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
"""Form of the names of cameras and edges."""

MESSAGE_OVERHEAD_BYTES = 1024
"""Most that the other fields of a frame's message take beside its picture."""


class EdgeSettings(NatsSettings):
    """What an edge can be told."""

    service: ClassVar[str] = "edge"

    listen: str = Field(
        "127.0.0.1:50051",
        title="Address of the gRPC server",
        description="host:port; port 0 takes a free one. 127.0.0.1 keeps strangers out.",
    )
    metrics_listen: str = Field(
        "127.0.0.1:9101",
        title="Address of the Prometheus metrics",
        description="host:port of the HTTP page /metrics; empty: none.",
    )
    max_message_bytes: int = Field(
        32 * 1024 * 1024,
        ge=64 * 1024,
        le=256 * 1024 * 1024,
        title="Largest gRPC message, in bytes",
        description="A larger one ends its call with RESOURCE_EXHAUSTED.",
    )
    edge_id: str = Field(
        "edge-1",
        pattern=NAME_PATTERN,
        title="Name of this edge",
        description="Travels with every face. 1..64 of A-Z a-z 0-9 . _ -",
    )
    data_dir: Path = Field(
        Path("~/.local/share/sfic/edge"),
        title="Directory of the store",
        description="Made when it is not there. Two edges never share one.",
    )
    key_file: Path | None = Field(
        None,
        title="Master key of the sealed layers",
        description="32 bytes that only this user can read. Unset: master.key in data_dir, made "
        "when there is none.",
    )

    bundle: Path | None = Field(
        None, title="Model bundle", description="Unset: the one that ships with the package."
    )
    provider: Literal["auto", "cpu", "openvino", "cuda"] = Field(
        "auto",
        title="Where the networks run",
        description="auto takes the first that is there of a GPU (cuda), OpenVINO on a CPU with "
        "bfloat16, and ONNX Runtime (cpu); one that is asked for and not there is an error.",
    )
    threads: int = Field(
        1,
        ge=0,
        le=256,
        title="CPU threads of one worker's networks",
        description="One keeps several workers out of each other's way. 0: all cores.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=256,
        title="Frames encoded at once",
        description="0: one for each CPU core.",
    )

    rate: int = Field(
        5, ge=1, le=9, title="Rate", description="Bytes against fidelity, for frames that ask none."
    )
    effort: int = Field(
        0, ge=0, le=3, title="Effort", description="Time an encoding may take at the same rate."
    )
    brighten: bool = Field(
        True,
        title="Faces in too little light",
        description="Coded as bright as other faces, and marked; off: as dark as they are.",
    )
    min_face_score: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        title="Face-score gate",
        description="Faces less usable than this are counted and not kept.",
    )

    max_faces: int = Field(
        32,
        ge=1,
        le=1024,
        title="Faces kept of one frame",
        description="The largest ones.",
    )
    max_picture_bytes: int = Field(
        30 * 1024 * 1024,
        ge=1024,
        title="Largest picture as sent, in bytes",
        description="A raw 4K frame has 24.9 MB. A larger one gets a receipt with an error.",
    )
    max_picture_pixels: int = Field(
        64_000_000,
        ge=4096,
        title="Largest picture, in pixels",
        description="Width times height, looked at before anything is decoded.",
    )
    max_cameras: int = Field(
        64, ge=1, le=10_000, title="Camera streams at once", description="Further ones are refused."
    )
    frames_in_flight: int = Field(
        4,
        ge=1,
        le=256,
        title="Frames in work for one stream",
        description="The next is read when one of them has its receipt.",
    )
    total_frames_in_flight: int = Field(
        32,
        ge=1,
        le=10_000,
        title="Frames in work over all streams",
        description="Bounds memory, with one more waiting frame for each stream.",
    )
    max_subscribers: int = Field(
        64, ge=1, le=10_000, title="Subscribers at once", description="Further ones are refused."
    )

    live_backlog_faces: int = Field(
        1024,
        ge=1,
        title="Faces that a live subscriber may lag behind",
        description="Over it the oldest are dropped for that subscriber, who is told how many. One "
        "who reads from a cursor gets all.",
    )

    retention_hours: float = Field(
        168.0,
        gt=0.0,
        le=87_600.0,
        title="Age at which faces are dropped, in hours",
        description="Counted from when the edge stored them.",
    )
    retention_bytes: int = Field(
        10 * 1024**3,
        ge=1024,
        title="Size at which the oldest faces are dropped, in bytes",
        description="Layers and what is known of the faces, without the database's own overhead.",
    )
    retention_check_seconds: float = Field(
        60.0,
        gt=0.0,
        le=3600.0,
        title="How often the age is looked at, in seconds",
        description="The size is looked at with every frame.",
    )

    @model_validator(mode="after")
    def _picture_fits_message(self) -> Self:
        largest = self.max_message_bytes - MESSAGE_OVERHEAD_BYTES
        if "max_picture_bytes" in self.model_fields_set and self.max_picture_bytes > largest:
            raise ValueError(
                f"max_picture_bytes must be at most max_message_bytes - {MESSAGE_OVERHEAD_BYTES}"
            )
        return self
