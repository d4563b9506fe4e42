"""The Grafana dashboards: they show every metric that a service exports, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from analytics_service.metrics import AnalyticsMetrics
from cloud_decoder.metrics import DecoderMetrics
from edge_encoder.metrics import EdgeMetrics
from sfic.service.interceptor import ErrorInterceptor

DEPLOY = Path(__file__).parent.parent / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
METRICS: dict[str, type] = {
    "edge": EdgeMetrics,
    "analytics": AnalyticsMetrics,
    "decoder": DecoderMetrics,
}


def exported(service: str) -> dict[str, set[str]]:
    """Names of the samples that a service exports, with their labels."""
    registry = CollectorRegistry()
    ErrorInterceptor(registry)
    METRICS[service](registry)
    # What a metric is called when it is shown, and by which labels it is told apart.
    found: dict[str, set[str]] = {}
    for collector, names in registry._collector_to_names.items():
        labels = {*getattr(collector, "_labelnames", ()), "instance", "job", "le"}
        found |= {name: labels for name in names}
        found |= {f"{name}_info": labels for name in names if collector._type == "info"}
    return found


def expressions(panels: list[dict[str, Any]]) -> Iterator[str]:
    for panel in panels:
        yield from (target["expr"] for target in panel.get("targets", ()))
        yield from expressions(panel.get("panels", []))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_metric_and_label_is_exported(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    names = exported(path.stem)
    asked = [
        *expressions(dashboard["panels"]),
        dashboard["templating"]["list"][0]["query"]["query"],
    ]
    assert len(asked) > 15
    for expression in asked:
        metrics = re.findall(r"sfic_\w+", expression)
        assert metrics, expression
        for metric in metrics:
            assert metric in names, metric
            grouped = re.search(r"by \(([\w, ]+)\)", expression)
            wanted = set(grouped[1].split(", ")) if grouped else set()
            assert wanted <= names[metric], (expression, names[metric])


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_metric_of_a_service_is_on_its_dashboard(path: Path) -> None:
    shown = " ".join(expressions(json.loads(path.read_text())["panels"]))
    registry = CollectorRegistry()
    ErrorInterceptor(registry)
    METRICS[path.stem](registry)
    suffixes = {"counter": "_total", "histogram": "_bucket", "info": "_info", "gauge": ""}
    for metric in registry.collect():
        name = metric.name + suffixes[metric.type]
        assert re.search(rf"\b{name}\b", shown), name


def test_each_service_has_its_dashboard_and_each_names_the_provisioned_source() -> None:
    assert {path.stem for path in DASHBOARDS} == set(METRICS)
    source = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    uid = yaml.safe_load(source.read_text())["datasources"][0]["uid"]
    for path in DASHBOARDS:
        used = set(re.findall(r'"type": "prometheus",\s*"uid": "([^"]+)"', path.read_text()))
        assert used == {uid}, path.name
        identifiers = [panel["id"] for panel in json.loads(path.read_text())["panels"]]
        assert len(identifiers) == len(set(identifiers))


def test_prometheus_reads_the_ports_of_the_container_settings() -> None:
    settings = (DEPLOY / "sfic.toml").read_text()
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    for job in scraped:
        (target,) = job["static_configs"][0]["targets"]
        name, _, port = target.partition(":")
        assert name == job["job_name"] and f'metrics_listen = "0.0.0.0:{port}"' in settings
