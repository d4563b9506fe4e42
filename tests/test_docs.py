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

from sfic.bundle import ModelBundle
from sfic.cli import app
from sfic.healthcheck import settings_of
from sfic.locations import models_dir

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


def test_every_program_of_ours_in_the_docs_exists_with_its_options() -> None:
    """`python -m ...`, which takes too long to run here, wherever a page names it."""
    named = [
        (page.name, module, re.findall(r"(?<=\s)--[a-z-]+", options))
        for page in [*PAGES, *(ROOT / "models").rglob("*.md")]
        for module, options in re.findall(
            r"python -m ((?:benchmarks|training|sfic)[\w.]*)([^`#\n]*)",
            page.read_text().replace("\\\n", " "),
        )
    ]
    assert len({module for _, module, _ in named}) > 15
    for page, module, options in named:
        path = ROOT / module.replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert path.is_file(), (page, module)
        for option in options:
            assert f'"{option}"' in path.read_text(), (page, module, option)


def calibration_tables() -> dict[str, list[str]]:
    """What docs/analytics.md quotes of the bundle that ships: lines by their place on the page."""
    bundle = ModelBundle.load(models_dir())
    score, same = bundle.meta["face_score"], bundle.meta["same_person"]
    scores = [
        f"| {low:.2f} to {high:.2f} | {faces} | {100 * matched:.0f} % |"
        for low, high, faces, matched in score["matched"]
    ]
    thresholds = [
        f"| {threshold:.2f} | {100 * match:.2g} % | {100 * other:.2g} % |"
        for threshold, match, other in same["error_rates"]
        if threshold in (0.4, 0.5, 0.6, 0.7, 0.8)
    ]
    even = -same["offset"] / same["scale"]
    return {
        "face scores": [
            f"Model bundle `{bundle.hash}`:",
            "",
            *("| score | faces | matched |", "|---|---|---|", *scores),
        ],
        "thresholds": [
            f"Model bundle `{bundle.hash}`, where one person is as likely as two at {even:.2f};",
            f"{same['pairs']:,} pairs, and {same['strangers']:,} of pictures of two people:",
            "",
            "| threshold | two people match | one person does not |",
            *("|---|---|---|", *thresholds),
        ],
    }


def test_the_analytics_page_quotes_the_bundle_that_ships(rewrite_golden: bool) -> None:
    path = ROOT / "docs" / "analytics.md"
    for name, lines in calibration_tables().items():
        table = "\n".join(lines)
        text = path.read_text()
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        fresh, places = marked.subn(lambda found, t=table: f"{found[1]}{t}\n{found[2]}", text)
        assert places == 1, name
        if rewrite_golden:
            path.write_text(fresh)
        else:
            assert text == fresh, f"{path.name}: run pytest {__file__} --rewrite-golden"
