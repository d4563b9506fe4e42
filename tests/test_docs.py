"""The documentation: the site builds without a warning, and its commands are those of the CLI."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from sfic.cli import app
from sfic.healthcheck import settings_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    for page in ("index.html", "reference/cli/index.html", "reference/grpc/index.html"):
        text = (tmp_path / page).read_text()
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?:[^"]+)"', text)
        assert not loaded, page
    assert "StreamFrames" in (tmp_path / "reference" / "grpc" / "index.html").read_text()
    assert "encode_picture" in (tmp_path / "reference" / "python" / "index.html").read_text()


def commands() -> list[tuple[str, str]]:
    """Every `sfic` command, in blocks and within sentences, with the page it is on."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.M | re.S):
            found += [
                (page.name, line.removeprefix("$ ").removesuffix("&").strip())
                for line in block.splitlines()
                if re.match(r"(\$ )?sfic ", line)
            ]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        found += [
            (page.name, " ".join(command.split()).removesuffix(" ..."))
            for command in re.findall(r"`(sfic [^`]+)`", prose)
        ]
    return found


def test_every_command_and_option_of_the_docs_exists() -> None:
    shown = commands()
    assert len(shown) > 20
    for page, line in shown:
        words = shlex.split(line)[1:]
        command: object = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        assert not getattr(command, "commands", {}), (page, line)
        known = {name for each in command.params for name in each.opts}  # type: ignore[attr-defined]
        if getattr(command, "name", "") == "serve" and words[0] != "all":
            fields = settings_of(words[0]).model_fields
            known |= {f"--{name.replace('_', '-')}" for name in fields}
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help"}, (page, line)
