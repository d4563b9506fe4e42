"""Metrics of the cloud decoder, units in their names. Counting belongs to who does the work."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

__all__ = ["DecoderMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class DecoderMetrics:
    """One set of metrics on a registry of its own, so that a process can hold two services."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.info = Info("sfic_decoder", "Model bundle and execution provider.", registry=registry)
        self.requests = Gauge(
            "sfic_decoder_requests", "Requests running and queued.", registry=registry
        )
        self.pictures = Counter(
            "sfic_decoder_pictures_total", "Pictures sent.", ["level"], registry=registry
        )
        self.fetch_calls = Counter(
            "sfic_decoder_fetch_calls_total", "Calls of FetchLayers.", registry=registry
        )
        self.fetched_bytes = Counter(
            "sfic_decoder_fetched_bytes_total",
            "Bytes of packets fetched from the edge.",
            ["layer"],
            registry=registry,
        )
        self.layers_cached = Counter(
            "sfic_decoder_layers_cached_total",
            "Layers that were wanted and did not have to be fetched.",
            registry=registry,
        )
        self.fetch_seconds = Histogram(
            "sfic_decoder_fetch_seconds",
            "Time of one fetch from the edge.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.synthesis_seconds = Histogram(
            "sfic_decoder_synthesis_seconds",
            "Time to decode and synthesise one picture, without its waiting time.",
            ["level", "size"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "sfic_decoder_wait_seconds",
            "Time that a picture waited for a free worker.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.cache_bytes = Gauge(
            "sfic_decoder_cache_bytes", "Memory of the cached layers.", registry=registry
        )
        self.cache_faces = Gauge(
            "sfic_decoder_cache_faces", "Faces with cached layers.", registry=registry
        )
