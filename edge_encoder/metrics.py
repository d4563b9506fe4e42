"""The edge's metrics. Their units are in their names; nothing is labelled by what clients send."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

__all__ = ["EdgeMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class EdgeMetrics:
    """All metrics of one edge, in its own registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.frames = Counter(
            "sfic_edge_frames_total",
            "Frames by what became of them: kept, empty, repeated, or the code of the error.",
            ["outcome"],
            registry=r,
        )
        # Counted from 0 on, so that an alert on their increase sees the first one.
        for outcome in ("kept", "empty", "STORAGE"):
            self.frames.labels(outcome)
        self.frame_seconds = Histogram(
            "sfic_edge_frame_seconds",
            "From a frame's arrival to its receipt.",
            buckets=_SECONDS,
            registry=r,
        )
        self.encode_seconds = Histogram(
            "sfic_edge_encode_seconds",
            "Decoding, detection, alignment and encoding of a frame, on one worker.",
            buckets=_SECONDS,
            registry=r,
        )
        self.picture_bytes = Counter(
            "sfic_edge_picture_bytes_total", "Bytes of pictures received.", registry=r
        )
        self.frames_in_flight = Gauge("sfic_edge_frames_in_flight", "Frames in work.", registry=r)
        self.cameras = Gauge("sfic_edge_camera_streams", "Camera streams open.", registry=r)
        self.faces = Counter(
            "sfic_edge_faces_total",
            "Faces found, by outcome: kept or below_gate.",
            ["outcome"],
            registry=r,
        )
        self.layer_bytes = Counter(
            "sfic_edge_layer_bytes_total", "Bytes of layers stored.", ["layer"], registry=r
        )
        self.evicted = Counter(
            "sfic_edge_evicted_faces_total",
            "Faces dropped by retention, by reason: age or bytes.",
            ["reason"],
            registry=r,
        )
        self.store_bytes = Gauge(
            "sfic_edge_store_bytes", "Size of the faces kept, as retention counts it.", registry=r
        )
        self.store_faces = Gauge("sfic_edge_store_faces", "Faces kept.", registry=r)
        self.commit_seconds = Histogram(
            "sfic_edge_commit_seconds",
            "Storing and syncing the faces of a frame.",
            buckets=_SECONDS,
            registry=r,
        )
        self.subscribers = Gauge("sfic_edge_feed_subscribers", "Subscribers connected.", registry=r)
        self.feed_faces = Counter(
            "sfic_edge_feed_faces_total", "Basic layers sent to subscribers.", registry=r
        )
        self.feed_bytes = Counter(
            "sfic_edge_feed_bytes_total", "Bytes of basic layers sent to subscribers.", registry=r
        )
        self.feed_missed = Counter(
            "sfic_edge_feed_missed_faces_total",
            "Faces that retention dropped before a subscriber came to them.",
            registry=r,
        )
        self.feed_dropped = Counter(
            "sfic_edge_feed_dropped_faces_total",
            "Faces that live subscribers were too slow for.",
            registry=r,
        )
        self.outbox_faces = Counter(
            "sfic_edge_outbox_faces_total", "Faces published to NATS.", registry=r
        )
        self.outbox_waiting = Gauge(
            "sfic_edge_outbox_waiting_faces",
            "Faces kept and not yet published to NATS: its cursor's distance from the log's end.",
            registry=r,
        )
        self.outbox_connected = Gauge(
            "sfic_edge_outbox_connected", "1 while the edge publishes to NATS.", registry=r
        )
        self.fetched_bytes = Counter(
            "sfic_edge_fetched_bytes_total", "Bytes of layers fetched.", ["layer"], registry=r
        )
        self.info = Info("sfic_edge", "What this edge runs.", registry=r)
        for outcome in ("kept", "below_gate"):
            self.faces.labels(outcome)
        for reason in ("age", "bytes"):
            self.evicted.labels(reason)
        for layer in ("basic", "middle", "enhanced"):
            self.layer_bytes.labels(layer)
            self.fetched_bytes.labels(layer)
