"""Every command and example of README and docs is run, as a reader would run it.

Blocks of ```sh and ```console go through a shell, line by line; the ```python blocks of a page are
one program. What cannot run where tests run says so right above the block, with its reason
(`<!-- not run: needs a GPU -->`), and is in `EXEMPT` here. A line that starts a service is waited
for; services go on until their chapter ends.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_camera import write_video

from sfic.alignment import align
from sfic.detection import FaceDetector
from sfic.healthcheck import serves, serves_page, settings_of
from sfic.locations import demo_photograph
from sfic.pictures import read_picture

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
PORTS = (50051, 50052, 50053, 50080, 9101, 9102, 9103, 9105)

# Pages whose commands need each other's services, in this order; every other page is alone.
CHAPTERS = {
    "on one machine": (
        "docs/quick-start.md",
        "docs/how-to/own-camera.md",
        "docs/how-to/analytics-client.md",
    ),
    "secured": ("docs/security.md", "docs/how-to/console.md"),
}
# Page and language of blocks that another test runs.
ELSEWHERE = {
    ("README.md", "console"): "test_cli.py",  # and compares what they print
    ("docs/how-to/analytics-client.md", "python"): "test_client.py",
}
EXEMPT = {
    ("README.md", "clones and installs"),
    ("docs/quick-start.md", "clones and installs"),
    ("docs/how-to/evaluate.md", "needs face sets that are not public"),
    ("docs/how-to/evaluate.md", "takes minutes"),
    ("docs/how-to/gpu.md", "needs a GPU"),
    ("docs/how-to/monitoring.md", "needs Docker"),
    ("docs/how-to/own-camera.md", "needs a camera"),
    ("docs/how-to/own-checkpoint.md", "runs in NVIDIA's checkout"),
    (
        "docs/how-to/systemd.md",
        "changes the machine; tests/test_deployment.py starts the unit's commands",
    ),
    ("docs/how-to/nats.md", "needs NATS servers; tests/test_nats.py does it"),
    ("docs/runbook.md", "writes outside its folder; tests/test_backup.py does it"),
    ("docs/scaling.md", "takes minutes"),
    (
        "docs/how-to/own-checkpoint.md",
        "trains for hours; tests/test_make_bundle.py does it at toy size",
    ),
}
FENCE = re.compile(
    r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str
    exempt: str
    """Why it is not run; empty: it is."""

    @property
    def runs(self) -> bool:
        """Whether it is run by this file."""
        executable = self.language in ("sh", "console", "python")
        return executable and not self.exempt and (self.page, self.language) not in ELSEWHERE

    def lines(self) -> list[str]:
        """The commands, one a line, as a shell takes them."""
        text = self.text.replace("\\\n", " ")
        if self.language == "console":
            return re.findall(r"^\$ (.*)$", text, re.MULTILINE)
        return [line for line in text.splitlines() if line and not line.startswith("#")]


def blocks(page: str) -> list[Block]:
    found = FENCE.findall((ROOT / page).read_text())
    return [Block(page, language, text, exempt) for exempt, language, text in found]


ALONE = [
    page
    for page in PAGES
    if not any(page in pages for pages in CHAPTERS.values())
    and any(block.runs for block in blocks(page))
]


class Reader:
    """Somebody with a shell in a folder, who types what a page says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services: dict[str, subprocess.Popen[bytes]] = {}
        self.face_id = self.grant_id = ""
        starters = folder / "bin"
        starters.mkdir()
        for name, module in (("sfic", "-m sfic"), ("python", "")):
            starter = starters / name
            starter.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            starter.chmod(0o755)
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "PATH": f"{starters}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def run(self, line: str) -> None:
        """Run one line; what starts a service returns when that takes calls.

        Ids of faces and grants on the page stand for those that the commands before have printed.
        """
        line = re.sub(r"\b01[0-9A-Z]{24}\b", lambda found: self.face_id or found[0], line)
        line = re.sub(r"--revoke \S+", f"--revoke {self.grant_id}", line)
        if line.startswith("sfic serve "):
            self._serve(shlex.split(line.removesuffix("&"), comments=True))
            return
        ended = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ended.returncode == 0, (line, ended.stdout, ended.stderr)
        faces = re.findall(r"^  ([0-9A-Z]{26})  ", ended.stdout, re.MULTILINE)
        grants = re.findall(r"^granted: (\S+)", ended.stdout, re.MULTILINE)
        self.face_id = (faces or [self.face_id])[0]
        self.grant_id = (grants or [self.grant_id])[0]

    def _serve(self, words: list[str]) -> None:
        name = words[2]
        self.stop(name)
        for port in () if self.services else PORTS:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    pytest.skip(f"port {port}, which the docs use, is taken on this machine")
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            service = subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdout=output, stderr=output
            )
        self.services[name] = service
        deadline = time.monotonic() + 120
        while not self._takes_calls(name, words[3:]):
            assert service.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def _takes_calls(self, name: str, flags: list[str]) -> bool:
        if name == "all":
            pages = serves_page("127.0.0.1:50080", 0.5)
            return pages and all(serves(f"127.0.0.1:{port}", 0.5) for port in PORTS[:3])
        here = [flag.replace("certs/", f"{self.folder}/certs/") for flag in flags]
        settings = settings_of(name).load(here)
        if name == "console":
            return serves_page(settings.listen, 0.5, settings.tls_certificate is not None)
        return serves(settings.listen, 0.5, settings.own_identity())

    def stop(self, name: str) -> None:
        """End a service in good order, if it runs."""
        if name in self.services:
            service = self.services.pop(name)
            service.terminate()
            assert service.wait(60) == 0, (self.folder / f"{name}.log").read_text()


@contextmanager
def reading(folder: Path) -> Iterator[Reader]:
    """A reader with the things at hand that the pages name."""
    picture = read_picture(demo_photograph())
    shutil.copy(demo_photograph(), folder / "photo.png")
    for name in ("photo.jpg", "holiday/portrait.jpg", "photographs/portrait.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    crop, _ = align(picture, FaceDetector().detect(picture)[0], size=256)
    (folder / "faces").mkdir()
    Image.fromarray(crop).save(folder / "faces" / "one.png")
    Image.fromarray(np.ascontiguousarray(crop[:, ::-1])).save(folder / "faces" / "two.png")
    write_video(folder / "video.mp4", 3)
    reader = Reader(folder)
    try:
        yield reader
        for name in list(reader.services):
            reader.stop(name)
    finally:
        for service in reader.services.values():
            service.kill()
            service.wait()


def read(reader: Reader, page: str) -> None:
    """Type everything on a page: its commands as they come, then its Python as one program."""
    running = [block for block in blocks(page) if block.runs]
    for block in running:
        if block.language != "python":
            for line in block.lines():
                reader.run(line)
    examples = [block.text for block in running if block.language == "python"]
    if examples:
        (reader.folder / "examples.py").write_text("\n".join(examples))
        reader.run("python examples.py")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter(chapter: str, tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        for page in CHAPTERS[chapter]:
            read(reader, page)


@pytest.mark.parametrize("page", ALONE)
def test_a_page(page: str, tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        if page == "docs/how-to/own-checkpoint.md":
            torch = pytest.importorskip("torch")
            from test_stylegan2 import make_state, upto

            torch.save({"G_ema": make_state("nvidia", upto(64))}, tmp_path / "G_ema.pt")
            (tmp_path / "my-bundle").symlink_to(ROOT / "models")
        read(reader, page)


def test_what_is_not_run_is_little_and_named() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    assert {(block.page, block.exempt) for block in every if block.exempt} == EXEMPT
    for page in PAGES:
        text, found = (ROOT / page).read_text(), blocks(page)
        # A marker or a fence that the pattern does not see would hide a block.
        assert text.count("<!-- not run") == sum(bool(block.exempt) for block in found), page
        assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(found), page
    for block in every:
        assert block.language in ("sh", "console", "python", "toml", ""), block
        command = re.search(r"^(\$ )?(sfic|python|make|docker|pip) ", block.text, re.MULTILINE)
        assert block.language or not command, block
    for (page, _), test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / "tests" / test).read_text()


def test_settings_in_the_docs_are_settings() -> None:
    tables = [
        (block.page, name, table)
        for page in PAGES
        for block in blocks(page)
        if block.language == "toml"
        for name, table in tomllib.loads(block.text).items()
    ]
    assert len(tables) > 3
    for page, name, table in tables:
        assert settings_of(name).make(**table), page
