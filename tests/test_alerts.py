"""The alerts: rules that are valid, fire when they should, and have a part of the runbook each."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from test_dashboards import exported

from sfic.service.tls import export_expiry

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy" / "prometheus-alerts.yml"
CASES = ROOT / "tests" / "data" / "prometheus-alerts-test.yml"
SERVICES = ("edge", "analytics", "decoder")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here (Debian package prometheus)"
)


def alerts() -> dict[str, dict[str, Any]]:
    """The rules by name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    return {rule["alert"]: rule for rule in rules}


def promtool(*words: object) -> None:
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_rules_and_configuration() -> None:
    promtool("check", "rules", RULES)
    promtool("check", "config", ROOT / "deploy" / "prometheus.yml")


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", CASES)


def test_no_alert_is_without_a_case_that_fires_and_one_that_does_not() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    asked = [check for case in cases for check in case["alert_rule_test"]]
    fired = {check["alertname"] for check in asked if check["exp_alerts"]}
    quiet = {check["alertname"] for check in asked if not check["exp_alerts"]}
    assert fired == quiet == set(alerts())


def test_every_metric_and_label_is_exported(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    export_expiry(tmp_path / "none.pem", registry)
    known = {"up": {"job", "instance"}}
    known |= {name: {"instance"} for name in registry._names_to_collectors}
    for service in SERVICES:
        known |= exported(service)
    for name, rule in alerts().items():
        metrics = re.findall(r"\b(?:sfic_\w+|up)\b", rule["expr"])
        assert metrics, name
        for metric in metrics:
            assert metric in known, (name, metric)
            for asked in re.findall(rf"{metric}\{{(\w+)[=!]", rule["expr"]):
                assert asked in known[metric], (name, metric, asked)


def test_the_runbook_has_each_alert_with_its_meaning_check_and_cure() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    parts = dict(re.findall(r"^### (Sfic\w+)\n(.*?)(?=^##|\Z)", runbook, re.M | re.S))
    assert list(parts) == list(alerts())
    for name, part in parts.items():
        for word in ("Meaning", "Check", "Cure"):
            assert f"**{word}.**" in part, (name, word)
        severity = alerts()[name]["labels"]["severity"]
        assert f"*{severity}.*" in part, name


def test_every_series_of_the_cases_is_a_metric_of_ours() -> None:
    known = {"up"} | {name for service in SERVICES for name in exported(service)}
    known.add("sfic_tls_certificate_expires_timestamp_seconds")
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for series in case["input_series"]:
            assert series["series"].partition("{")[0] in known
