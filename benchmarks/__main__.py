"""`python -m benchmarks`: all of it, one by one, so that nothing is measured beside another.

All but speed need the face sets (`SFIC_SHARED`) and are left out, with a word,
where they are not.
"""

from __future__ import annotations

import subprocess
import sys

from training.data import shared_dir


def main() -> int:
    """Run every benchmark; the exit status of the first that fails."""
    commands = [["benchmarks.speed", "--threads", "1"], ["benchmarks.speed", "--threads", "2"]]
    if (shared_dir() / "data" / "faces" / "index.csv").is_file():
        names = ("quality", "effort", "conditions", "tasks", "bit_exactness")
        commands += [[f"benchmarks.{name}"] for name in names]
    else:
        print("no face sets: quality, conditions and tasks are not measured", file=sys.stderr)
    commands += [["benchmarks.analytics_throughput"], ["benchmarks.search"]]
    for command in commands:
        print(f"== python -m {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, "-m", *command], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
