"""Writing of results: the figures with the command, the versions and the machine that gave them."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
DOCS = Path(__file__).resolve().parent.parent / "docs" / "figures"
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "opencv-python-headless",
    "constriction",
    "pillow",
    "av",
    "openvino",
    "torch",
)


def processor() -> str:
    """Name of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")


def versions() -> dict[str, str]:
    """Versions of the packages that matter to a figure."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command that is running. Folders of the machine are nobody else's business."""
    words = ["DIR" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    spec = sys.modules["__main__"].__spec__
    module = f"benchmarks.{Path(sys.argv[0]).stem}"
    if spec is not None and spec.name.startswith(("benchmarks", "training")):
        module = spec.name.removesuffix(".__main__")
    return " ".join(["python -m", module, *words])


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_markdown(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Write a page for the docs: `parts`, and the command that printed them; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = f"Printed by `{command()}`, {time.strftime('%Y-%m-%d')}."
    path.write_text("\n\n".join([f"# {title}", made, *parts]) + "\n", encoding="utf-8")
    return path


def write_result(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `NAME.json` into a folder, by default `results/`; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    stated = {
        "command": command(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": versions(),
        "figures": figures,
    }
    path.write_text(json.dumps(stated, indent=1) + "\n")
    return path
