"""Writing of results: the figures with the command, the versions and the machine that gave them."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "constriction",
            "pillow", "av", "openvino", "torch")


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


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/NAME.json`; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    # Folders of the machine are nobody else's business.
    words = ["DIR" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    stated = {
        "command": " ".join(["python -m benchmarks." + Path(sys.argv[0]).stem, *words]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": versions(),
        "figures": figures,
    }
    path.write_text(json.dumps(stated, indent=1) + "\n")
    return path
