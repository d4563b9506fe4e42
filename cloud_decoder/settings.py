"""Settings of the cloud decoder. Reading them belongs to `sfic.service.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from sfic.service.addresses import split_address
from sfic.service.settings import EdgeClientSettings

__all__ = ["DecoderSettings"]


class DecoderSettings(EdgeClientSettings):
    """What a decoder can be told."""

    service: ClassVar[str] = "decoder"

    listen: str = Field(
        "127.0.0.1:50053",
        title="Address of the gRPC server",
        description="host:port; port 0 takes a free one. 127.0.0.1 keeps strangers out.",
    )
    metrics_listen: str = Field(
        "127.0.0.1:9103",
        title="Address of the Prometheus metrics",
        description="host:port of the HTTP page /metrics; empty: none.",
    )
    max_message_bytes: int = Field(
        32 * 1024 * 1024,
        ge=64 * 1024,
        le=256 * 1024 * 1024,
        title="Largest gRPC message taken, in bytes",
        description="A frame to paste a face into has to fit.",
    )
    edge: str = Field("127.0.0.1:50051", title="Address of the edge that layers are fetched from")
    fetch_seconds: float = Field(
        10.0, gt=0.0, le=300.0, title="Longest wait for layers from the edge, in seconds"
    )
    cache_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        le=64 * 1024**3,
        title="Memory for layers lately fetched, in bytes",
        description="A face takes some 2.5 kB. 0 keeps none.",
    )
    cache_seconds: float = Field(
        3600.0,
        gt=0.0,
        le=604_800.0,
        title="Age at which cached layers are forgotten, in seconds",
        description="No face outlives the edge's retention by more than this.",
    )
    bundle: Path | None = Field(
        None, title="Model bundle", description="Unset: the one that ships with the package."
    )
    second_bundle: Path | None = Field(
        None,
        title="Second model bundle that faces may be of",
        description="During a change of bundles; see docs/runbook.md.",
    )
    provider: Literal["auto", "cpu", "openvino", "cuda"] = Field(
        "auto",
        title="Where the networks run",
        description="auto takes the first that is there of a GPU (cuda), OpenVINO on a CPU with "
        "bfloat16, and ONNX Runtime (cpu); one that is asked for and not there is an error.",
    )
    threads: int = Field(
        0, ge=0, le=256, title="CPU threads of one synthesis", description="0: all cores."
    )
    synthesis_workers: int = Field(
        2,
        ge=1,
        le=64,
        title="Pictures synthesised at once",
        description="With two, one picture's packets are decoded and its PNG is packed, each on "
        "one core, while another is synthesised. On a CPU more need more memory and gain little; "
        "on a GPU it is the largest batch.",
    )
    max_requests: int = Field(
        64,
        ge=1,
        le=10_000,
        title="Requests running and queued, at most",
        description="Further ones are refused with RESOURCE_EXHAUSTED.",
    )
    max_frame_pixels: int = Field(
        64_000_000, ge=4096, title="Largest frame that a face is pasted into, in pixels"
    )
    jpeg_quality: int = Field(92, ge=1, le=100, title="Quality of JPEG pictures")

    @field_validator("edge")
    @classmethod
    def _edge_is_address(cls, value: str) -> str:
        split_address(value)
        return value
