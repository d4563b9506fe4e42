"""Metrics of the analytics service, units in their names. Counting belongs to who does the work."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

__all__ = ["AnalyticsMetrics"]


class AnalyticsMetrics:
    """One set of metrics on a registry of its own, so that a process can hold two services."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.info = Info(
            "sfic_analytics", "Model bundle, execution provider, retention.", registry=registry
        )
        self.faces = Counter(
            "sfic_analytics_faces_total",
            "Faces received, by outcome: OK, REPEATED or the code of the error.",
            ["edge", "outcome"],
            registry=registry,
        )
        self.faces_missed = Counter(
            "sfic_analytics_faces_missed_total",
            "Faces that an edge dropped by retention before they were read.",
            ["edge"],
            registry=registry,
        )
        self.feed_connected = Gauge(
            "sfic_analytics_feed_connected",
            "1 while the feed of an edge is open.",
            ["edge"],
            registry=registry,
        )
        self.lag_seconds = Histogram(
            "sfic_analytics_lag_seconds",
            "Time from capture to the committed result, by the camera's clock.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600, 86_400),
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "sfic_analytics_batch_seconds",
            "Time to analyse one batch, and to wait until the one before it is committed.",
            registry=registry,
        )
        self.commit_failures = Counter(
            "sfic_analytics_commit_failures_total",
            "Commits that failed and were tried again.",
            registry=registry,
        )
        self.queue_faces = Gauge(
            "sfic_analytics_queue_faces",
            "Faces received and not yet analysed.",
            registry=registry,
        )
        self.faces_unknown = Counter(
            "sfic_analytics_faces_unknown_total",
            "Faces too poor to be read, kept without guesses.",
            ["edge"],
            registry=registry,
        )
        self.newest_lag_seconds = Gauge(
            "sfic_analytics_newest_lag_seconds",
            "Time from capture to the committed result of the newest face of an edge.",
            ["edge"],
            registry=registry,
        )
        self.index_faces = Gauge(
            "sfic_analytics_index_faces", "Faces that can be searched.", registry=registry
        )
        self.index_bytes = Gauge(
            "sfic_analytics_index_bytes", "Memory of the likeness index.", registry=registry
        )
        self.results_pruned = Counter(
            "sfic_analytics_results_pruned_total",
            "Results deleted by retention, by reason: age, count or bytes.",
            ["reason"],
            registry=registry,
        )
        self.records_pruned = Counter(
            "sfic_analytics_records_pruned_total",
            "What else retention deleted, by kind: failures or alerts.",
            ["kind"],
            registry=registry,
        )
        for reason in ("age", "count", "bytes"):
            self.results_pruned.labels(reason)
        for kind in ("failures", "alerts"):
            self.records_pruned.labels(kind)
        self.results_forgotten = Counter(
            "sfic_analytics_results_forgotten_total",
            "Results deleted because a face was to be forgotten.",
            registry=registry,
        )
        self.alerts = Counter(
            "sfic_analytics_alerts_total", "Alerts of watchlists raised.", registry=registry
        )
        self.hook_deliveries = Counter(
            "sfic_analytics_webhook_deliveries_total",
            "Deliveries to webhooks tried, by outcome: OK, the HTTP status, or ERROR.",
            ["hook", "outcome"],
            registry=registry,
        )
        self.hook_waiting = Gauge(
            "sfic_analytics_webhook_waiting",
            "Entries of the log that a webhook has not been sent yet.",
            ["hook"],
            registry=registry,
        )
        self.subscribers = Gauge(
            "sfic_analytics_subscribers", "Streams of results open.", registry=registry
        )
        self.search_seconds = Histogram(
            "sfic_analytics_search_seconds", "Time to answer a search.", registry=registry
        )

    def know(self, edge: str) -> None:
        """Show an edge's counts from 0 on, so that an alert on their increase sees the first one;
        its feed is not open yet."""
        self.feed_connected.labels(edge).set(0)
        self.faces_missed.labels(edge)
        self.faces_unknown.labels(edge)
