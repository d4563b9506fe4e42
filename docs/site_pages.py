"""Pages of the site that are made from the project itself: CLI help, protos, model cards.

An MkDocs hook (`hooks` in mkdocs.yml). Belongs here: turning what is there into Markdown. Does not
belong here: words of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PROTOS = ("edge", "analytics", "decoder", "control", "common")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder in the place of its name in the navigation."""
    for entry in config.nav or []:
        for title, target in entry.items():
            if isinstance(target, str) and target.endswith("/"):
                folder = Path(config.docs_dir) / target
                entry[title] = [{_title(path): target + path.name} for path in _pages(folder)]
    return config


def _pages(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.md"))


def _title(path: Path) -> str:
    return path.read_text().partition("\n")[0].removeprefix("# ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """Path in the site to Markdown."""
    return {
        "reference/cli.md": command_line(),
        "reference/grpc.md": protos(),
        "reference/models.md": model_cards(),
    }


def command_line() -> str:
    """Every command's help, as the program prints it."""
    from sfic.cli import app

    parts = ["# Command line\n\nAs `sfic COMMAND --help` prints it.\n"]
    group = typer.main.get_command(app)
    for path, command in _commands(group, "sfic"):
        context = click.Context(command, info_name=path)  # type: ignore[arg-type]
        lines = [f"## {path}\n", f"{_text(command.help)}\n", "| | |", "|---|---|"]
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is None:
                names = parameter.make_metavar(context)
                record = (names, getattr(parameter, "help", "") or "")
            lines.append(f"| `{record[0].replace('|', ' or ')}` | {_text(record[1])} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _commands(group: click.Command, name: str) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for child, command in getattr(group, "commands", {}).items():
        path = f"{name} {child}"
        if getattr(command, "commands", None):
            found += _commands(command, path)
        else:
            found.append((path, command))
    return found


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def protos() -> str:
    """The contracts, as they are in `proto/`."""
    parts = ["# gRPC\n\nPackage `sfic.v1`. Each service also has health checks and reflection.\n"]
    for name in PROTOS:
        path = ROOT / "proto" / "sfic" / "v1" / f"{name}.proto"
        if path.is_file():
            parts.append(f"## {name}.proto\n\n```protobuf\n{path.read_text().strip()}\n```\n")
    return "\n".join(parts)


def model_cards() -> str:
    """The cards of the weights in `models/`, one after the other; their headings one level down."""
    parts = ["# Models\n"]
    cards = _pages(ROOT / "models") + _pages(ROOT / "models" / "judges")
    for path in sorted(cards, key=lambda path: (len(path.parts), path.name != "README.md", path)):
        text = re.sub(r"^(#+ )", r"#\1", path.read_text(), flags=re.M)
        # Links lead into the repository, which the site is not part of: keep their words.
        parts.append(re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text))
    return "\n\n".join(parts)
