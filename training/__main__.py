"""`python -m training models`: rebuild every weight in `models/`, command after command.

    python -m training models [--converted]     # --converted: only what comes from packages

Converted networks come from pinned packages. Our own networks need the face sets too
(`SFIC_SHARED`), and hours: each of their commands goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from training.data import REPOSITORY, cache_dir, shared_dir

CONFIGS = Path("training") / "configs"
# Each goes on from the one before; those of WIDER from it with the fine channels started anew.
CODEC = (
    *("codec-v2", "codec-v2-spatial", "codec-v2-joint"),
    *("codec-v3-spatial", "codec-v4-spatial", "codec-v5-filter"),
    *("codec-v6-spatial", "codec-v6-correct", "codec-v7-filter", "codec-v8-spatial"),
)
WIDER = ("codec-v3-spatial", "codec-v4-spatial")
FITTED: dict[str, list[str]] = {
    **dict.fromkeys(WIDER, []),
    "codec-v5-filter": ["--styles", "0.2"],
    "codec-v6-correct": [],
}


def converted() -> list[list[str]]:
    """Commands that need nothing but packages."""
    return [
        ["training.convert_detection"],
        ["training.generator"],
        ["training.convert_teachers"],
        ["training.convert_judges"],
    ]


def trained(out: Path) -> list[list[str]]:
    """Commands that train our own networks, in order."""
    folder = cache_dir() / CODEC[-1]
    last, heads = folder / "checkpoint.pt", folder / "heads.pt"
    given = ["--checkpoint", str(last), "--input", "128"]
    commands = [["training.teacher_cache"], ["training.face_parser"]]
    start: list[str] = []
    for name in CODEC:
        begin = str(cache_dir() / f"{name}-start.pt")
        if name in WIDER:
            commands.append(["training.start_refinement", "--checkpoint", start[1], "--out", begin])
            start = ["--init", begin]
        if name in FITTED:
            fit = ["training.fit_rates", "--checkpoint", start[1], "--out", begin]
            commands.append([*fit, *FITTED[name]])
            start = ["--init", begin]
        config = str(CONFIGS / f"{name}.toml")
        commands.append(["training.train_codec", "--config", config, *start])
        start = ["--init", str(cache_dir() / name / "checkpoint.pt")]
    return [
        *commands,
        ["training.train_entropy", *given, "--out", str(out), "--minutes", "45"],
        ["training.train_heads", *given, "--out", str(heads)],
        ["training.export", *given, "--heads", str(heads), "--out", str(out)],
        ["training.calibrate", "--bundle", str(out)],
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["models"])
    parser.add_argument("--converted", action="store_true", help="only what comes from packages")
    args = parser.parse_args()
    commands = converted()
    faces = shared_dir() / "data" / "faces" / "index.csv"
    if not args.converted:
        if faces.is_file():
            commands += trained(REPOSITORY / "models")
        else:
            print(f"no face sets at {faces}: our own networks stay as they are", file=sys.stderr)
    # Large blocks kept by the allocator: mapping them anew each step costs more than the step.
    tunables = (
        "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296"
        ":glibc.malloc.trim_threshold=8589934592"
    )
    environment = os.environ | {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", tunables)}
    for number, command in enumerate(commands, 1):
        print(f"== {number}/{len(commands)}: python -m {' '.join(command)}", flush=True)
        subprocess.run(
            [sys.executable, "-m", *command], check=True, cwd=REPOSITORY, env=environment
        )


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from None
