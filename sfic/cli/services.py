"""The commands around the services: `serve`, `camera`, `reconstruct`, `demo`.

What belongs here: options and what is printed. Services, camera client and demo are elsewhere.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from sfic.cli.files import LayerName, Provider, Size, made_brighter
from sfic.cli.security import CaFile, IdentityPrefix, TokenFile, identity_of
from sfic.errors import InvalidInput, MissingExtra, NoFaceFound, SficError

if TYPE_CHECKING:
    from sfic.service.settings import ServiceSettings

__all__ = ["add_to"]

EDGE = "127.0.0.1:50051"
DECODER = "127.0.0.1:50053"


class ServiceName(str, Enum):
    """What `sfic serve` can start."""

    edge = "edge"
    analytics = "analytics"
    decoder = "decoder"
    console = "console"
    all = "all"


def serve(
    context: typer.Context,
    service: Annotated[ServiceName, typer.Argument(help="Which service; all: every one of them.")],
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="TOML file with settings."),
    ] = None,
) -> None:
    """Run a service until SIGTERM or Ctrl-C.

    Every setting is also a flag (--listen 0.0.0.0:50051) and an environment variable
    (SFIC_EDGE__LISTEN); `sfic serve edge -- --help` lists them.
    """
    if service is ServiceName.all:
        if context.args:
            raise InvalidInput(
                f"serve all takes no settings as flags ({context.args[0]}): use --config or SFIC_*"
            )
        _serve_all(config)
    elif service is ServiceName.edge:
        from edge_encoder.settings import EdgeSettings

        edge = EdgeSettings.load(context.args, config=config)
        from edge_encoder.service import run as run_edge

        run_edge(edge)
    elif service is ServiceName.analytics:
        from analytics_service.settings import AnalyticsSettings

        analytics = AnalyticsSettings.load(context.args, config=config)
        from analytics_service.service import run as run_analytics

        run_analytics(analytics)
    elif service is ServiceName.console:
        from console.settings import ConsoleSettings

        page = ConsoleSettings.load(context.args, config=config)
        from console.service import run as run_console

        run_console(page)
    else:
        from cloud_decoder.settings import DecoderSettings

        decoder = DecoderSettings.load(context.args, config=config)
        from cloud_decoder.service import run as run_decoder

        run_decoder(decoder)


def _serve_all(config: Path | None) -> None:
    """The services as children: when one ends, all end."""
    from analytics_service.settings import AnalyticsSettings
    from cloud_decoder.settings import DecoderSettings
    from console.settings import ConsoleSettings
    from edge_encoder.settings import EdgeSettings
    from sfic.processes import ServiceGroup

    kinds: dict[str, type[ServiceSettings]] = {
        "edge": EdgeSettings,
        "analytics": AnalyticsSettings,
        "decoder": DecoderSettings,
        "console": ConsoleSettings,
    }
    # Read here first, so that a mistake is told once and before anything starts.
    settings = {name: kind.load(config=config) for name, kind in kinds.items()}
    if not has_console():
        del settings["console"]
        typer.echo("console: not installed; pip install 'sfic[console]'")
    arguments = ["--config", str(config)] if config else []
    grace = max(each.shutdown_grace_seconds for each in settings.values()) + 5
    with _stopped_by_signal():
        group = ServiceGroup()
        try:
            for name, each in settings.items():
                page = name == "console"
                group.start(name, each.listen, arguments, identity=each.own_identity(), page=page)
            group.wait_ready(120.0, lambda name: typer.echo(f"{name}: {settings[name].listen}"))
            _grant_to_ourselves(settings["edge"])
            typer.echo("all services take calls; Ctrl-C stops them")
            if "console" in settings:
                scheme = "https" if settings["console"].tls_certificate else "http"
                typer.echo(f"look at the faces: {scheme}://{settings['console'].listen}")
            group.wait_for_any()
        except _Stopped:
            pass
        finally:
            # Children in our process group get Ctrl-C too; a second one must not cut us short.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            group.stop(grace)


def has_console() -> bool:
    """Whether what the console needs is installed."""
    from importlib.util import find_spec

    return find_spec("fastapi") is not None and find_spec("uvicorn") is not None


def _grant_to_ourselves(edge: ServiceSettings) -> None:
    """Let the decoder beside an edge that knows no callers see its faces, and say so."""
    import asyncio

    if edge.knows_callers:
        typer.echo("no grant made: decoders see higher layers when sfic grant says so")
        return
    from sfic.grants import grant_all_faces

    hours = 24.0 * 30
    grant = asyncio.run(
        grant_all_faces(edge.listen, "sfic serve all on one machine", hours, edge.own_identity())
    )
    typer.echo(
        f"granted: the decoder sees every face for {hours / 24:g} days"
        f" (end it: sfic grant --revoke {grant.grant_id})"
    )


class _Stopped(Exception):
    """SIGTERM or SIGINT came."""


@contextlib.contextmanager
def _stopped_by_signal() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def camera(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Picture, folder, video file, rtsp:// address or webcam number."
        ),
    ],
    edge: Annotated[str, typer.Option(help="Address of the edge.")] = EDGE,
    camera_id: Annotated[str, typer.Option(help="Name the edge knows us by.")] = "camera-1",
    fps: Annotated[
        float | None, typer.Option(min=0.01, max=240.0, help="At most so many frames a second.")
    ] = None,
    rate: Annotated[
        int, typer.Option(min=0, max=9, help="Rate of our frames; 0: as the edge is set.")
    ] = 0,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="The pictures are FFHQ-aligned crops.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Start again at the end.")] = False,
    identity: IdentityPrefix = None,
    ca: CaFile = None,
    token: TokenFile = None,
) -> None:
    """Stream pictures or video to an edge, and print what it keeps of each frame."""
    import asyncio

    from sfic.camera import Camera
    from sfic.face import brightened
    from sfic.sources import open_source

    _quiet_logs()
    stream = open_source(source, loop=loop)

    async def send() -> tuple[int, int, int]:
        frames = taken = faces = 0
        client = Camera(
            stream,
            edge,
            camera_id=camera_id,
            fps=fps,
            rate=rate,
            aligned=aligned,
            identity=identity_of(identity, ca, token),
        )
        async for receipt in client.receipts():
            frames += 1
            if receipt.error_code:
                typer.echo(
                    f"{receipt.label}: {receipt.error_message} ({receipt.error_code})", err=True
                )
                continue
            taken += 1
            faces += len(receipt.faces)
            below = f", {receipt.faces_below_gate} unusable" if receipt.faces_below_gate else ""
            typer.echo(
                f"{receipt.label}: kept {len(receipt.faces)}{below}, {receipt.edge_ms:.0f} ms"
            )
            for face in receipt.faces:
                sizes = " + ".join(map(str, face.layer_bytes))
                dark = made_brighter(brightened(face))
                typer.echo(
                    f"  {face.face_id}  {sizes} bytes, face score {face.face_score:.2f}{dark}"
                )
        return frames, taken, faces

    frames, taken, faces = asyncio.run(send())
    typer.echo(
        f"{frames} frame{'s' if frames != 1 else ''}, {faces} face{'s' if faces != 1 else ''}"
    )
    if not taken:
        raise InvalidInput(f"{source}: the edge could use none of its frames")
    if not faces:
        raise NoFaceFound(f"{source}: no face found")


def _quiet_logs() -> None:
    """Only warnings of our own client, on stderr."""
    import logging

    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def reconstruct(
    face_id: Annotated[str, typer.Argument(metavar="FACE_ID", help="As the edge's receipt said.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write, .png or .jpg.")],
    layers: Annotated[
        LayerName, typer.Option(help="Highest layer to fetch and use.")
    ] = LayerName.enhanced,
    size: Size = None,
    decoder: Annotated[str, typer.Option(help="Address of the decoder.")] = DECODER,
    purpose: Annotated[str, typer.Option(help="Why; kept on the audit log.")] = "",
    identity: IdentityPrefix = None,
    ca: CaFile = None,
    token: TokenFile = None,
) -> None:
    """Reconstruct a face that an edge keeps, through a running decoder."""
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    if output.suffix.lower() not in formats:
        raise InvalidInput(f"{output}: write to a file that ends in .png or .jpg")
    import asyncio

    from sfic.face import brightened
    from sfic.service.client import open_channel, sfic_errors
    from sfic.v1 import decoder_pb2, decoder_pb2_grpc

    request = decoder_pb2.ReconstructRequest(
        face_id=face_id,
        highest=f"LAYER_{layers.value.upper()}",
        final_only=True,
        size=size or 0,
        format=f"PICTURE_FORMAT_{formats[output.suffix.lower()]}",
        purpose=purpose,
    )

    async def ask() -> decoder_pb2.ReconstructResponse:
        last: decoder_pb2.ReconstructResponse | None = None
        async with open_channel(decoder, identity=identity_of(identity, ca, token)) as channel:
            with sfic_errors(f"decoder at {decoder}"):
                async for answer in decoder_pb2_grpc.CloudDecoderStub(channel).Reconstruct(request):
                    last = answer
        if last is None:
            raise SficError(f"decoder at {decoder} sent no picture")
        return last

    answer = asyncio.run(ask())
    output.write_bytes(answer.picture)
    typer.echo(
        f"wrote {output} ({answer.width}x{answer.height}, {layers.value} from "
        f"{answer.layer_bytes} bytes, {answer.fetched_bytes} of them fetched now)"
        f"{made_brighter(brightened(answer.face))}"
    )
    typer.echo(
        f"fetch {answer.fetch_ms:.0f} ms, decode {answer.decode_ms:.0f} ms, "
        f"synthesis {answer.synthesis_ms:.0f} ms on {answer.provider}"
    )


def demo(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PICTURE_OR_FOLDER]",
            exists=True,
            show_default=False,
            help="Any photograph with faces, or a folder of them; default: one that ships along.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", file_okay=False, help="Folder to write to.")
    ] = Path("out"),
    rate: Annotated[int, typer.Option(min=1, max=9, help="Bytes against fidelity.")] = 5,
    provider: Annotated[Provider, typer.Option(help="Where the networks run.")] = Provider.auto,
    console: Annotated[
        bool | None,
        typer.Option(
            "--console/--no-console",
            show_default="on a terminal",
            help="Stay, and serve the operators' page, until Ctrl-C.",
        ),
    ] = None,
) -> None:
    """All of it on one machine: a real photograph in, faces out, and a page to look at."""
    from sfic.demo import run

    if console and not has_console():
        raise MissingExtra("--console needs: pip install 'sfic[console]'")
    stay = sys.stdout.isatty() and has_console() if console is None else console
    if not stay:
        run(source, output, rate=rate, provider=provider.value)
        return
    with _stopped_by_signal(), contextlib.suppress(_Stopped):
        run(source, output, rate=rate, provider=provider.value, console=True)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
    for command in (camera, reconstruct, demo):
        app.command()(command)
