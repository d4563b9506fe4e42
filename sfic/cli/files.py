"""The commands that work on files: `encode`, `decode`, `info`, `analyze`.

What belongs here: options, reading and writing files, and what is printed. Coding is the codec's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfic.errors import InvalidInput, MissingExtra, NoFaceFound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sfic.analysis import Analysis, Estimate
    from sfic.face import EncodedFace

__all__ = ["LayerName", "Provider", "Size", "add_to", "made_brighter", "save_picture"]

_MEGAPIXEL = 1024 * 1024
_SIDE_BY_SIDE = 4  # faces in one table of results


class LayerName(str, Enum):
    """The highest layer to use; each stands for the lower ones too."""

    basic = "basic"
    middle = "middle"
    enhanced = "enhanced"


class Provider(str, Enum):
    """Where the networks run."""

    auto = "auto"
    cpu = "cpu"
    openvino = "openvino"
    cuda = "cuda"


Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default="the largest",
        help="Side of the picture; with the bundle that ships 128, 256, 512 or 1024.",
    ),
]
_Provider = Annotated[
    Provider,
    typer.Option(help="Where the networks run; auto takes a GPU when there is one."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def encode(
    picture: Annotated[
        Path,
        typer.Argument(
            metavar="IN", exists=True, dir_okay=False, readable=True, help="Any picture."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; default: IN with the suffix .sfic."),
    ] = None,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="IN already is an FFHQ-aligned crop of one face.")
    ] = False,
    rate: Annotated[
        int | None, typer.Option(min=1, max=9, help="Bytes against fidelity; default: 5.")
    ] = None,
    target_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of a rate: bytes of a face's three layers together."),
    ] = None,
    effort: Annotated[
        int,
        typer.Option(
            min=0,
            max=3,
            help="Time to spend. 1 saves a twentieth of the bytes, and no more than that is worth; "
            "2 and 3 need torch, take 10 and 40 s, and do not pay yet.",
        ),
    ] = 0,
    max_faces: Annotated[
        int, typer.Option(min=1, max=256, help="Encode at most so many faces, the largest.")
    ] = 32,
    brighten: Annotated[
        bool, typer.Option(help="Code faces in too little light as bright as others.")
    ] = True,
    provider: _Provider = Provider.auto,
) -> None:
    """Encode the faces of a picture into a .sfic file."""
    if rate is not None and target_bytes is not None:
        raise InvalidInput("--rate and --target-bytes exclude each other")
    if effort >= 2 and find_spec("torch") is None:
        raise MissingExtra(f"--effort {effort} needs torch: pip install 'sfic[train]'")
    from sfic.container import write_container
    from sfic.pictures import read_picture

    pixels = read_picture(picture)
    from sfic.codec import Codec

    codec = Codec.load(provider=provider.value)
    options: dict[str, Any] = {
        "rate": 5 if rate is None else rate,
        "effort": effort,
        "target_bytes": target_bytes,
        "brighten": brighten,
    }
    if aligned:
        faces = [codec.encode(pixels, **options)]
    else:
        faces = codec.encode_picture(pixels, max_faces=max_faces, **options)
    if not faces:
        raise NoFaceFound(f"{picture}: no face found")
    target = output or picture.with_suffix(".sfic")
    write_container(faces, target)
    for number, face in enumerate(faces, 1):
        typer.echo(f"face {number}: {_in_words(face)}, face score {face.face_score:.2f}")
    typer.echo(f"wrote {target} ({target.stat().st_size} bytes)")


def decode(
    file: Annotated[Path, typer.Argument(metavar="IN.sfic", exists=True, dir_okay=False)],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Picture to write (PNG, JPEG or WebP by its suffix)."),
    ],
    face: Annotated[
        int | None, typer.Option(min=1, help="Only this face, from 1; default: all.")
    ] = None,
    layers: Annotated[
        LayerName, typer.Option(help="Highest layer to use; lower ones are used too.")
    ] = LayerName.enhanced,
    size: Size = None,
    provider: _Provider = Provider.auto,
) -> None:
    """Reconstruct faces from a .sfic file."""
    _check_suffix(output)
    from sfic.container import read_container

    faces = read_container(file)
    if face is not None and face > len(faces):
        raise InvalidInput(f"--face {face}: {file} holds {len(faces)}")
    chosen = range(1, len(faces) + 1) if face is None else [face]
    from sfic.codec import Codec

    codec = Codec.load(provider=provider.value)
    for number in chosen:
        pixels = codec.decode(faces[number - 1], layers=layers.value, size=size)
        several = len(chosen) > 1
        target = output.with_stem(f"{output.stem}-{number}") if several else output
        save_picture(target, pixels)
        side = pixels.shape[0]
        typer.echo(f"wrote {target} ({side}x{side}, {layers.value}, {codec.provider})")


def info(
    file: Annotated[Path, typer.Argument(metavar="IN.sfic", exists=True, dir_okay=False)],
    as_json: _Json = False,
) -> None:
    """Tell what is in a .sfic file: faces, layers, bytes. Needs no model."""
    from sfic.container import read_container

    faces = read_container(file)
    bundles = sorted({face.model_bundle_id for face in faces})
    if as_json:
        print(json.dumps({"model_bundle": ",".join(bundles), "faces": [_facts(f) for f in faces]}))
        return
    plural = "s" if len(faces) > 1 else ""
    typer.echo(f"{file}: {len(faces)} face{plural}, model bundle {', '.join(bundles)}")
    for number, face in enumerate(faces, 1):
        typer.echo(f"face {number}: rate {face.rate}, {_in_words(face)}")


def analyze(
    file: Annotated[Path, typer.Argument(metavar="IN.sfic", exists=True, dir_okay=False)],
    as_json: _Json = False,
    provider: _Provider = Provider.auto,
) -> None:
    """Machine-task results of each face, read from its basic layer alone."""
    from sfic.container import read_container

    faces = read_container(file)
    from sfic.codec import Codec

    codec = Codec.load(provider=provider.value)
    results = [codec.analyze(face.basic) for face in faces]
    if as_json:
        facts = [{"face": number, **_results(r)} for number, r in enumerate(results, 1)]
        print(json.dumps({"model_bundle": codec.model_bundle, "faces": facts}))
        return
    _show_results(faces, results)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (encode, decode, info, analyze):
        app.command()(command)


def save_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write uint8 RGB [H, W, 3] in the format of the suffix; InvalidInput for any other suffix."""
    from PIL import Image

    _check_suffix(path)
    Image.fromarray(pixels).save(path)


def _check_suffix(path: Path) -> None:
    known = (".png", ".jpg", ".jpeg", ".webp")
    if path.suffix.lower() not in known:
        raise InvalidInput(f"{path}: write to a file that ends in {', '.join(known)}")


def made_brighter(factor: float) -> str:
    """What is said of a face that was brightened before it was coded; of others, nothing."""
    return f", made {factor:.1f} times brighter" if factor > 1.0 else ""


def _in_words(face: EncodedFace) -> str:
    """Bytes of each layer, their sum, bits per pixel."""
    parts = " + ".join(f"{name} {len(packet)}" for name, packet in face.layers.items())
    bits = 8 * face.total_bytes
    dark = made_brighter(face.brightened)
    return f"{parts} = {face.total_bytes} bytes, {bits / _MEGAPIXEL:.4f} bpp at 1024x1024{dark}"


def _facts(face: EncodedFace) -> dict[str, Any]:
    bits = 8 * face.total_bytes
    source = face.source_size
    return {
        "layers": [{"name": n, "bytes": len(packet)} for n, packet in face.layers.items()],
        "total_bytes": face.total_bytes,
        "bpp_1024": bits / _MEGAPIXEL,
        "bpp_source": bits / source**2 if source else None,
        "source_size": source,
        "rate": face.rate,
        "face_score": face.face_score,
        "brightened": face.brightened,
        "placement": face.placement.to_dict() if face.placement else None,
    }


def _results(result: Analysis) -> dict[str, Any]:
    from sfic.analysis import PARSING_CLASSES

    def estimate(value: Any) -> dict[str, float]:
        return {"value": float(value.value), "confidence": float(value.confidence)}

    pose = result.pose
    return {
        "embedding": [float(x) for x in result.embedding],
        "embedding_confidence": float(result.embedding_confidence),
        "age": estimate(result.age),
        "gender": estimate(result.gender),
        "smile": estimate(result.smile),
        "pose": {
            name: float(getattr(pose, name)) for name in ("yaw", "pitch", "roll", "confidence")
        },
        "landmarks": [[float(x), float(y)] for x, y in result.landmarks],
        "landmarks_confidence": float(result.landmarks_confidence),
        "face_score": estimate(result.face_score),
        "expression": {
            "name": result.expression.name,
            "confidence": float(result.expression.confidence),
            "probabilities": result.expression.probabilities,
        },
        "glasses": estimate(result.glasses),
        "eyes_open": estimate(result.eyes_open),
        "mouth_open": estimate(result.mouth_open),
        "facial_hair": estimate(result.facial_hair),
        "parsing": {
            name: float(area)
            for name, area in zip(PARSING_CLASSES, result.areas, strict=True)
            if area
        },
    }


def _show_results(faces: Sequence[EncodedFace], results: Sequence[Analysis]) -> None:
    from rich.console import Console
    from rich.table import Table

    def said(estimate: Estimate, yes: str = "yes", no: str = "no") -> str:
        return f"{yes if estimate.value >= 0.5 else no} ({estimate.confidence:.2f})"

    def column(face: EncodedFace, result: Analysis) -> dict[str, str]:
        age, looks, pose = result.age, result.expression, result.pose
        return {
            "bytes read": str(len(face.basic)),
            "age": f"{age.value:.0f} ({age.confidence:.2f})",
            "gender": said(result.gender, "male", "female"),
            "smile": said(result.smile),
            "looks": f"{looks.name} ({looks.confidence:.2f})",
            "glasses": said(result.glasses),
            "eyes": said(result.eyes_open, "open", "shut"),
            "mouth": said(result.mouth_open, "open", "shut"),
            "beard, moustache": said(result.facial_hair),
            "yaw, pitch, roll": f"{pose.yaw:+.0f} {pose.pitch:+.0f} {pose.roll:+.0f}"
            f" ({pose.confidence:.2f})",
            "usable": f"{result.face_score.value:.2f} ({result.face_score.confidence:.2f})",
        }

    columns = [column(face, result) for face, result in zip(faces, results, strict=True)]
    for first in range(0, len(columns), _SIDE_BY_SIDE):
        shown = columns[first : first + _SIDE_BY_SIDE]
        table = Table(title="read from the basic layer alone; in brackets the confidence")
        table.add_column("face")
        for number in range(first + 1, first + len(shown) + 1):
            table.add_column(str(number), justify="right")
        for task in shown[0]:
            table.add_row(task, *(one[task] for one in shown))
        Console().print(table)
