"""The command `eval`: rate and quality of codecs on any faces, as a report.

What belongs here: options, progress, and what is printed. Measuring is `sfic.evaluation`'s.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfic.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import Console

    from sfic.codec import Codec

__all__ = ["add_to", "show_progress"]


def evaluate(
    dataset: Annotated[
        list[Path],
        typer.Argument(metavar="DATASET ...", help="Folders of faces, or pictures."),
    ],
    report: Annotated[
        Path, typer.Option(help="Folder for the report; what it holds already is not done again.")
    ],
    codec: Annotated[
        list[str] | None,
        typer.Option(
            show_default="all that can run here",
            help="sfic, basic, vvc, x265, av1, avif, webp, jpeg or jpeg2000, each as often as "
            "wanted, with options: sfic:rates=1+5+9  sfic:effort=1  sfic:bytes=100+200  "
            "vvc:streams=DIR  x265:sizes=64+128,qualities=45+40",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            show_default="all whose judges are there",
            help="identity, vgg, landmarks, kid, rank1, identity_dlib, rank1_dlib, found, psnr.",
        ),
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="Find the faces in the pictures and align them first.")
    ] = False,
    anchor: Annotated[
        str | None,
        typer.Option(
            show_default="vvc, or the first that is not ours",
            help="The curve that BD-rates are against.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Only so many faces; 0: all.")] = 0,
    max_bytes: Annotated[
        int, typer.Option(min=1, help="Leave out settings that take more bytes a face.")
    ] = 2000,
    show: Annotated[int, typer.Option(min=0, help="Faces to show side by side.")] = 4,
    show_bytes: Annotated[int, typer.Option(min=1, help="Bytes to show them at.")] = 300,
    workers: Annotated[int, typer.Option(min=0, help="Faces at once; 0: one a core.")] = 0,
) -> None:
    """Compare codecs on faces: rate curves, BD-rates, side-by-side pictures."""
    from rich.console import Console

    from sfic.evaluation.choose import choose_coders, usual_codecs
    from sfic.evaluation.dataset import aligned_samples, detected_samples, picture_files
    from sfic.evaluation.judges import Judges
    from sfic.evaluation.metrics import METRICS, Examiner
    from sfic.evaluation.report import side_by_side, write_report
    from sfic.evaluation.run import evaluate as run
    from sfic.evaluation.store import Store

    console = Console(stderr=True)
    at_once = workers or os.cpu_count() or 1
    files = picture_files(dataset)
    examiner = Examiner(Judges(), metric or tuple(METRICS))
    coders = choose_coders(codec or usual_codecs(), _our_codec)
    names = [coder.name for coder in coders]
    if anchor is not None and anchor not in names:
        raise InvalidInput(f"--anchor {anchor}: the curves are {', '.join(names)}")
    report.mkdir(parents=True, exist_ok=True)
    with (
        Store(report / "results.sqlite", examiner.fingerprint) as store,
        show_progress(console) as tell,
    ):
        samples = detected_samples(files) if align else aligned_samples(files)
        evaluation = run(
            samples[: limit or None], coders, examiner, store, max_bytes, at_once, tell
        )
        tell("coding pictures to show", 0, 1)
        pictures = side_by_side(evaluation, coders, show_bytes, show)
    for name, judge in examiner.missing.items():
        console.print(
            f"left out: {name}, the judge {judge} is not built (python -m training.convert_judges)",
            style="yellow",
            soft_wrap=True,
        )
    measured = [curve.name for curve in evaluation.curves]
    for name in names:
        if name not in measured:
            words = f"left out: {name}, no setting under {max_bytes} bytes"
            console.print(words, style="yellow", soft_wrap=True)
    others = [name for name in measured if not name.startswith("sfic")]
    chosen = anchor or ("vvc" if "vvc" in measured else others[0] if others else None)
    written = write_report(
        evaluation,
        report,
        chosen if chosen in measured else None,
        pictures,
        "Faces at equal bytes",
        {"codecs": "; ".join(coder.key for coder in coders), **_facts()},
    )
    for path in written:
        typer.echo(f"wrote {path}")


def _our_codec() -> Codec:
    from sfic.codec import Codec

    return Codec.load(threads=1)


def _facts() -> dict[str, str]:
    """Versions that figures hang on."""
    from importlib.metadata import version

    packages = ("sfic", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "av")
    found = [f"Python {sys.version.split()[0]}"]
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return {"versions": ", ".join(found)}


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is being done."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("starting", total=None)

        def tell(what: str, done: int, total: int) -> None:
            if bar.tasks[0].description != what:
                bar.reset(task, description=what, total=total)
            bar.update(task, completed=done)

        yield tell


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(name="eval")(evaluate)
