"""What is installed, from where, and that containers and their settings fit the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from analytics_service.settings import AnalyticsSettings
from cloud_decoder.settings import DecoderSettings
from console.settings import ConsoleSettings
from edge_encoder.settings import EdgeSettings
from sfic.healthcheck import serves
from sfic.processes import free_address
from sfic.service.settings import ServiceSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = sorted((ROOT / "requirements").glob("*.txt"))
SETTINGS: dict[str, type[ServiceSettings]] = {
    "edge": EdgeSettings,
    "analytics": AnalyticsSettings,
    "decoder": DecoderSettings,
    "console": ConsoleSettings,
}


def requirements(path: Path) -> list[str]:
    """Each requirement with its hashes, on one line."""
    return path.read_text().replace("\\\n", " ").splitlines()


def pins(path: Path) -> set[str]:
    """name==version of each; where it applies (the marker) may widen with more extras."""
    return {re.split(r"[ ;\\]", line)[0] for line in requirements(path)}


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return match[0].lower().replace("_", "-")


@pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.name)
def test_locked_requirements_are_pinned_and_name_no_host(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"://|--(index|extra-index|find-links|trusted)|^\s*/|file:|@ ", text, re.M)
    assert len(requirements(path)) > 5
    for line in requirements(path):
        assert re.match(r"[a-z0-9.-]+==[^ ]+ ( *;.*)?( *--hash=sha256:[0-9a-f]{64})+$", line), line


def test_files_hold_all_that_the_project_names() -> None:
    extras = PROJECT["optional-dependencies"]
    for name, wanted in {
        "cpu": ["cpu"],
        "gpu": ["gpu"],
        "dev": ["cpu", "dev", "console"],
        "train": ["cpu", "dev", "console", "train"],
    }.items():
        locked = {name_of(line) for line in requirements(ROOT / "requirements" / f"{name}.txt")}
        named = [*PROJECT["dependencies"], *(r for extra in wanted for r in extras[extra])]
        assert {name_of(r) for r in named} - locked <= {"torch"}, name


def test_installing_more_never_changes_a_version() -> None:
    cpu, dev, train = (pins(ROOT / "requirements" / f"{n}.txt") for n in ("cpu", "dev", "train"))
    assert cpu <= dev <= train


def test_demo_and_tests_need_no_torch_and_no_cuda() -> None:
    for name in ("cpu", "dev", "train"):
        names = {name_of(line) for line in requirements(ROOT / "requirements" / f"{name}.txt")}
        assert not [n for n in names if n.startswith(("nvidia", "cuda", "triton", "torch"))]
    core = {name_of(r) for r in PROJECT["dependencies"]}
    assert not core & {"onnxruntime", "onnxruntime-gpu", "torch"}


def test_wheel_carries_the_weights_and_finds_them(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    committed = {path.name for path in (ROOT / "models").glob("*.onnx")}
    assert {f"sfic/_models/{name}" for name in committed} <= names
    assert {"sfic/data/astronaut.png", "edge_encoder/__main__.py", "training/__init__.py"} <= names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/"))]
    environment = {k: v for k, v in os.environ.items() if k != "SFIC_MODELS"}
    code = "import sfic.locations as l; print(l.models_dir()); assert l.demo_photograph().is_file()"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(found.stdout.strip()) == site / "sfic" / "_models"


def compose() -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert isinstance(content, dict)
    return content


def compose_services() -> dict[str, Any]:
    """Our services that serve, without the one that makes certificates and ends."""
    services: dict[str, Any] = compose()["services"]
    ours = {name: each for name, each in services.items() if "build" in each}
    return {name: each for name, each in ours.items() if name != "certs"}


def test_compose_makes_certificates_before_anything_serves(tmp_path: Path) -> None:
    """With the compose file's own command, into a folder in the place of its volume."""
    certs = compose()["services"]["certs"]
    assert certs["restart"] == "no" and "certs:/certs" in certs["volumes"]
    arguments = [str(tmp_path) if word == "/certs" else word for word in certs["command"][1:]]
    for _ in range(2):
        subprocess.run([sys.executable, "-m", "sfic", *arguments], cwd=ROOT, check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name, each in compose_services().items():
        assert "certs:/certs:ro" in each["volumes"], name
        kind = SETTINGS[each["build"]["args"]["SERVICE"]]
        settings = kind.load(config=ROOT / "deploy" / "sfic.toml", environment={})
        assert settings.knows_callers and not settings.insecure, name
        used = [each for each in dict(settings).values() if isinstance(each, Path)]
        ours = [each.name for each in used if each.parent == Path("/certs")]
        assert len(ours) >= 4 and set(ours) <= set(made), name
    first = compose_services()["edge"]["depends_on"]
    assert first == {"certs": {"condition": "service_completed_successfully"}}


def test_compose_runs_the_services_and_a_gpu_decoder_only_when_asked() -> None:
    services = compose_services()
    always = {name for name, each in services.items() if "profiles" not in each}
    assert always == {"edge", "analytics", "decoder", "console"}
    assert services["decoder-gpu"]["profiles"] == ["gpu"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name, each in services.items():
        assert all(port.startswith("127.0.0.1:") for port in each["ports"]), name
        arguments = each["build"]["args"]
        assert arguments["SERVICE"] in SETTINGS, name
        assert (ROOT / "requirements" / f"{arguments.get('EXTRA', 'cpu')}.txt").is_file()
        assert set(arguments) <= set(re.findall(r"^ARG (\w+)", dockerfile, re.M))


def test_container_settings_are_accepted_and_fit_the_published_ports(tmp_path: Path) -> None:
    file = ROOT / "deploy" / "sfic.toml"
    services = compose_services()
    for name, each in services.items():
        kind = SETTINGS[each["build"]["args"]["SERVICE"]]
        settings = kind.load(config=file, environment=each.get("environment", {}))
        listened = {a.rpartition(":")[2] for a in (settings.listen, settings.metrics_listen)}
        assert {port.rpartition(":")[2] for port in each["ports"]} == listened, name
    assert AnalyticsSettings.load(config=file, environment={}).edges == ("edge:50051",)
    assert DecoderSettings.load(config=file, environment={}).edge == "edge:50051"


def test_image_runs_as_nobody_special_and_is_asked_for_its_health() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    final = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER sfic" in final
    assert any("sfic.healthcheck" in line for line in final)
    copied = re.findall(r"^COPY (?!--from)(\S+) ", "\n".join(lines), re.M)
    assert copied and all((ROOT / path).exists() for path in copied)


def test_health_check_says_no_where_nobody_listens() -> None:
    assert not serves(free_address(), timeout_seconds=0.5)


def test_no_tracked_file_names_a_lock_with_hosts() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {Path(name).name for name in tracked} & {"uv.lock", "package-lock.json"}


def settings_table(kind: type[ServiceSettings]) -> str:
    """The settings of a service as a Markdown table."""
    lines = ["| setting | default | what |", "|---|---|---|"]
    for name, field in kind.model_fields.items():
        about = ". ".join(part for part in (field.title, field.description) if part)
        default = "" if field.is_required() or field.default in (None, "", ()) else field.default
        if isinstance(default, tuple):
            default = ", ".join(map(str, default))
        shown = f"`{default}`" if default != "" else "unset"
        lines.append(f"| `{name}` | {shown} | {about.rstrip('.')} |".replace("..", "…"))
    return "\n".join(lines)


def test_documented_settings_are_those_of_the_code(rewrite_golden: bool) -> None:
    path = ROOT / "docs" / "configuration.md"
    text = path.read_text()
    for name, kind in SETTINGS.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.S)
        assert marked.search(text), name
        fresh = marked.sub(lambda found, k=kind: found[1] + settings_table(k) + found[2], text)
        if rewrite_golden:
            path.write_text(fresh)
            text = fresh
        assert text == fresh, f"{path.name}: run pytest {__file__} --rewrite-golden"
