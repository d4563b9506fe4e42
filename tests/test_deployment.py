"""docker-compose.yml and the systemd units: valid, and what they start really runs.

No container engine is needed. `test_the_processes_of_the_compose_file_work_together` starts the
compose file's services as plain processes, in its order and with its own commands, environment and
health checks; only paths and ports are put in the place of those of containers.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from edge_encoder.settings import EdgeSettings
from sfic.client import AnalyticsClient
from sfic.locations import demo_photograph
from sfic.processes import free_address
from sfic.service.identity import Identity

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
OURS = ("edge", "analytics", "decoder", "console")


def test_compose_file_follows_the_specification() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())
    specification = jsonschema.Draft7Validator(schema)
    specification.validate(COMPOSE)
    with pytest.raises(jsonschema.ValidationError):
        specification.validate({**COMPOSE, "services": {"edge": {"restrat": "no"}}})


NATS_SERVER = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")


@pytest.mark.skipif(NATS_SERVER is None, reason="nats-server is not here")
def test_the_hub_of_the_nats_profile_runs_healthy(tmp_path: Path) -> None:
    hub = COMPOSE["services"]["nats"]
    assert hub["profiles"] == ["nats"]
    sfic("certs", "init", "--folder", tmp_path / "certs")
    addresses = {"0.0.0.0:4222": free_address(), "0.0.0.0:7422": free_address()}
    places = {"/certs": str(tmp_path / "certs"), "/data": str(tmp_path / "data"), **addresses}
    environment = dict(os.environ)
    for name, value in hub["environment"].items():
        for old, new in places.items():
            value = value.replace(old, new) if value.startswith(old) else value
        environment[name] = value
    page = free_address()
    command = [
        word.replace("/etc/nats", str(ROOT / "deploy" / "nats")) for word in hub["command"][1:]
    ]
    assert command[-2:] == ["-m", "8222"] and "127.0.0.1:8222" in hub["healthcheck"]["test"][-1]
    command[-1] = page.rpartition(":")[2]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([str(NATS_SERVER), *command], env=environment, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            try:
                answer = httpx.get(f"http://{page}/healthz", trust_env=False)
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if answer.json() == {"status": "ok"}:
                break
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_is_confined(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    assert "healthcheck" in service or "build" in service  # The image of ours has one.
    declared = set(COMPOSE["volumes"])
    for volume in service.get("volumes", ()):
        source = volume.partition(":")[0]
        assert source in declared or (ROOT / source).exists(), volume
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), port


def dockerfile() -> tuple[dict[str, str], list[str], list[str]]:
    """Environment, command and health check of the image's last stage."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    last = text[text.rindex("\nFROM ") :]
    environment = {}
    for line in re.findall(r"^ENV (.*)$", last, re.M):
        environment |= dict(word.split("=", 1) for word in shlex.split(line))
    commands = re.findall(r"^(?:HEALTHCHECK .*?)?CMD (\[.*\])$", last, re.M)
    health, command = map(json.loads, commands)
    return environment, command, health


class Containers:
    """What would run in containers, as processes; paths and addresses put in their place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certs = folder / "certs"
        self._places: dict[str, str] = {}
        text = (ROOT / "deploy" / "sfic.toml").read_text()
        for port in sorted(set(re.findall(r'"0\.0\.0\.0:(\d+)"', text))):
            self._places[port] = free_address()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._image_environment, self._command, self._health = dockerfile()

    def address(self, port: int) -> str:
        """Where a port of the containers is."""
        return self._places[str(port)]

    def _translated(self, text: str, name: str) -> str:
        for port, place in self._places.items():
            text = re.sub(rf"\b(0\.0\.0\.0|{'|'.join(OURS)}):{port}\b", place, text)
        text = text.replace("/certs", str(self.certs))
        return text.replace("/var/lib/sfic", str(self._folder / name))

    def _environment(self, name: str) -> dict[str, str]:
        service = COMPOSE["services"][name]
        given = {**self._image_environment, **service.get("environment", {})}
        given["SFIC_SERVICE"] = service["build"]["args"]["SERVICE"]
        config = self._folder / f"{name}.toml"
        shipped = ROOT / "deploy" / Path(given["SFIC_CONFIG"]).name
        config.write_text(self._translated(shipped.read_text(), name))
        given["SFIC_CONFIG"] = str(config)
        given["PATH"] = f"{self._bin()}:{os.environ['PATH']}"
        home = self._folder / name
        home.mkdir(exist_ok=True)
        return {**given, "HOME": str(home), "PYTHONPATH": str(ROOT)}

    def _bin(self) -> Path:
        """`sfic` and `python` of this interpreter, as the image has them on its path."""
        folder = self._folder / "bin"
        if not folder.exists():
            folder.mkdir()
            for name, arguments in (("python", ""), ("sfic", "-m sfic ")):
                script = folder / name
                script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
                script.chmod(0o755)
        return folder

    def start(self, name: str) -> None:
        """Start a service once those that it depends on are as it asks."""
        service = COMPOSE["services"][name]
        needed = service.get("depends_on", {})
        for other in needed:
            if other not in self._processes:
                self.start(other)
        for other, asked in needed.items():
            self._wait(other, asked["condition"])
        command = service.get("command", self._command)
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [self._translated(word, name) for word in command],
                cwd=self._folder,
                env=self._environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            assert self._processes[name].wait(60) == 0, self.log(name)
        else:
            assert condition == "service_healthy"
            self.wait_healthy(name)

    def wait_healthy(self, name: str) -> None:
        """Ask with the image's own health check until it says yes."""
        deadline = time.monotonic() + 60
        while subprocess.run(
            self._health, env=self._environment(name), cwd=self._folder, capture_output=True
        ).returncode:
            assert self._processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)

    def log(self, name: str) -> str:
        """What a service has said."""
        return (self._folder / f"{name}.log").read_text()

    def stop(self) -> None:
        """As `docker compose stop`: SIGTERM, and the grace time of the compose file."""
        for process in self._processes.values():
            process.terminate()
        for name, process in self._processes.items():
            grace = float(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s"))
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def containers(folder: Path) -> Iterator[Containers]:
    running = Containers(folder)
    try:
        yield running
    finally:
        running.stop()


def sfic(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sfic", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_processes_of_the_compose_file_work_together(tmp_path: Path) -> None:
    with containers(tmp_path) as running:
        running.start("console")
        running.wait_healthy("console")
        edge, certs = running.address(50051), running.certs
        sent = sfic("camera", demo_photograph(), "--edge", edge, "--identity", certs / "camera")
        face_id = re.findall(r"^  ([0-9A-Z]{26}) ", sent, re.M)[0]
        result = asyncio.run(first_result(running.address(50052), certs))
        assert result == face_id
        operator = ("--identity", certs / "operator")
        sfic("grant", face_id, "--purpose", "a test", "--edge", edge, *operator)
        picture = tmp_path / "face.png"
        decoder = running.address(50053)
        sfic("reconstruct", face_id, "-o", picture, "--size", 128, "--decoder", decoder, *operator)
        assert picture.stat().st_size > 1000
        token = sfic("token", "ada", "--role", "operator", "--key", certs / "token-key.pem").strip()
        page = f"https://{running.address(50080)}"
        as_page = {"X-Sfic-Console": "1"}
        with httpx.Client(
            base_url=page, headers=as_page, verify=False, trust_env=False, timeout=30
        ) as browser:
            assert browser.get("/api/cameras").status_code == 401
            assert browser.post("/api/session", json={"token": token}).status_code == 200
            assert browser.get(f"/api/faces/{face_id}").json()["id"] == face_id
        for port in (9101, 9102, 9103, 9105):
            exported = httpx.get(f"http://{running.address(port)}/metrics", trust_env=False).text
            assert "sfic_tls_certificate_expires_timestamp_seconds 1." in exported
    for name in OURS:
        assert '"level": "error"' not in running.log(name), running.log(name)
        assert running._processes[name].returncode == 0, running.log(name)


async def first_result(analytics: str, certs: Path) -> str:
    identity = Identity(
        ca=certs / "ca.pem", certificate=certs / "operator.pem", key=certs / "operator-key.pem"
    )
    async with AnalyticsClient(analytics, identity=identity) as client:
        async for result in client.results():
            return str(result.face_id)
    raise AssertionError("the stream of results ended")


# -- systemd


def unit(path: Path) -> Mapping[str, list[str]]:
    """Settings of a unit's service, each with its values in order."""
    settings: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([A-Za-z]+)=(.*)$", path.read_text(), re.M):
        settings.setdefault(name, []).append(value)
    return settings


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_valid_and_confined(path: Path, tmp_path: Path) -> None:
    # What is not installed here must not make the unit look wrong.
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/sfic/bin/sfic", sys.executable))
    for timer in path.parent.glob("*.timer"):
        shutil.copy(timer, tmp_path)
    files = sorted(map(str, tmp_path.iterdir()))
    verified = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True)
    told = [line for line in verified.stderr.splitlines() if str(tmp_path) in line]
    assert verified.returncode == 0 and not told, verified.stderr
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(copy)],
        capture_output=True,
        text=True,
    )
    assert judged.returncode == 0, judged.stdout  # An exposure of 2.0 or less.


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_call_commands_that_there_are(path: Path) -> None:
    (line,) = unit(path)["ExecStart"]
    program, command, *rest = shlex.split(line)
    assert program == "/opt/sfic/bin/sfic"
    told = sfic(command, "--help")
    options = {word for word in rest if word.startswith("--")} - {"--config"}
    assert all(option in told for option in options), line


def test_edge_unit_serves_its_own_settings(tmp_path: Path) -> None:
    """With the unit's command and environment; its paths put below a temporary folder."""
    made = sfic("certs", "init", "--folder", tmp_path / "etc" / "certs")
    assert "edge.pem" in made
    settings = (ROOT / "deploy" / "systemd" / "edge.toml").read_text()
    address = free_address()
    for old, new in (
        ("/etc/sfic", str(tmp_path / "etc")),
        ("/var/lib/sfic", str(tmp_path / "state")),
        ("0.0.0.0:50051", address),
        ("127.0.0.1:9101", free_address()),
    ):
        settings = settings.replace(old, new)
    config = tmp_path / "etc" / "edge.toml"
    config.write_text(settings)
    read = EdgeSettings.load(config=ROOT / "deploy" / "systemd" / "edge.toml", environment={})
    assert read.knows_callers and str(read.data_dir).startswith("/var/lib/sfic")
    edge = unit(ROOT / "deploy" / "systemd" / "sfic-edge.service")
    assert edge["StateDirectory"] == ["sfic"]
    words = shlex.split(edge["ExecStart"][0].replace("/etc/sfic", str(tmp_path / "etc")))[1:]
    given = dict(word.split("=", 1) for word in edge["Environment"][0].split())
    environment = {**os.environ, **given, "SFIC_CONFIG": str(config), "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sfic", *words], cwd=tmp_path, env=environment, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        check = [sys.executable, "-m", "sfic.healthcheck"]
        while subprocess.run(check, env=environment, capture_output=True).returncode:
            assert process.poll() is None and time.monotonic() < deadline, log
        camera = (tmp_path / "etc" / "certs" / "camera",)
        sent = sfic("camera", demo_photograph(), "--edge", address, "--identity", *camera)
        assert "kept 1" in sent
    finally:
        process.terminate()
        assert process.wait(30) == 0
