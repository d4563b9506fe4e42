"""`sfic demo`: the services on loopback, photographs in, analysed and reconstructed faces out.

What belongs here: the demo's own story, seen from outside the services as a camera, an analytics
subscriber and an operator see them. Its table and pictures are in `sfic.demo_report`.

    photograph --StreamFrames--> edge --basic layers--> analytics --SubscribeResults--> table
                                  ^ FetchLayers
                                decoder --Reconstruct: basic, middle, enhanced--> out/
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from sfic.alignment import Placement
from sfic.demo_report import print_table, write_pictures
from sfic.errors import InvalidInput, NoFaceFound, SficError, Unavailable
from sfic.grants import grant_all_faces
from sfic.layers import LAYERS
from sfic.locations import demo_photograph
from sfic.processes import ServiceGroup, free_address
from sfic.service.client import open_channel, sfic_errors
from sfic.sources import PICTURE_SUFFIXES
from sfic.v1 import (
    analytics_pb2,
    analytics_pb2_grpc,
    common_pb2,
    decoder_pb2,
    decoder_pb2_grpc,
    edge_pb2,
    edge_pb2_grpc,
)

__all__ = ["DemoFace", "DemoFrame", "run"]

_START_SECONDS = 180.0
_ANSWER_SECONDS = 120.0


@dataclass
class DemoFace:
    """One face as the services told it."""

    info: common_pb2.FaceInfo
    analysis: analytics_pb2.FaceAnalysis | None = None
    analysis_ms: float = 0.0
    """From the frame's receipt to the result, milliseconds."""
    levels: dict[str, decoder_pb2.ReconstructResponse] = field(default_factory=dict)

    @property
    def placement(self) -> Placement:
        """Where the face lies in its photograph."""
        a, b, c, d, e, f = self.info.placement.crop_to_frame
        place = self.info.placement
        return Placement(((a, b, c), (d, e, f)), place.frame_width, place.frame_height)


@dataclass
class DemoFrame:
    """One photograph and its faces, largest first."""

    path: Path
    faces: list[DemoFace]
    edge_ms: float
    faces_below_gate: int


@dataclass(frozen=True)
class _Addresses:
    edge: str
    analytics: str
    decoder: str
    console: str
    """Empty: no console."""


def run(
    source: Path | None,
    output: Path,
    *,
    rate: int = 5,
    provider: str = "auto",
    console: bool = False,
) -> None:
    """Run the demo on a picture, a folder of pictures, or the photograph that ships along.

    Writes pictures under `output` and prints a table. With `console` it then prints the address of
    the operators' page and serves it until it is interrupted. Raises NoFaceFound when no picture
    has a face, InvalidInput when there is no picture, and what the services raise.
    """
    pictures = _pictures(source)
    terminal = Console()
    started = time.monotonic()
    page = free_address() if console else ""
    addresses = _Addresses(free_address(), free_address(), free_address(), page)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with (
        tempfile.TemporaryDirectory(prefix="sfic-demo-") as folder,
        _start(addresses, Path(folder), rate, provider) as services,
    ):
        with progress:
            task = progress.add_task("starting the services", total=4 if console else 3)
            services.wait_ready(_START_SECONDS, lambda name: progress.advance(task))
            start_seconds = time.monotonic() - started
            frames = asyncio.run(_tell_story(addresses, pictures, progress))
            if not any(frame.faces for frame in frames):
                raise NoFaceFound(f"no face found in {source or pictures[0]}")
            progress.add_task("writing pictures", total=None)
            written = write_pictures(frames, output)
        print_table(terminal, frames, start_seconds)
        terminal.print(f"wrote {', '.join(str(path) for path in written)}", soft_wrap=True)
        if console:
            terminal.print(f"look at the faces: http://{page}   (Ctrl-C ends the demo)")
            services.wait_for_any()


def _pictures(source: Path | None) -> list[Path]:
    if source is None:
        return [demo_photograph()]
    if not source.is_dir():
        return [source]
    pictures = sorted(path for path in source.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise InvalidInput(f"{source}: no picture in this folder")
    return pictures


def _start(addresses: _Addresses, folder: Path, rate: int, provider: str) -> ServiceGroup:
    """Start the services with all they keep in `folder`."""
    services = ServiceGroup(log_directory=folder)
    # Only the console reads metrics.
    pages = [free_address() for _ in range(3)] if addresses.console else ["", "", ""]
    common = [f"--provider={provider}", "--log-format=json"]
    try:
        services.start(
            "edge",
            addresses.edge,
            [
                *common,
                f"--listen={addresses.edge}",
                f"--metrics-listen={pages[0]}",
                f"--data-dir={folder / 'edge'}",
                f"--rate={rate}",
            ],
        )
        services.start(
            "analytics",
            addresses.analytics,
            [
                *common,
                f"--listen={addresses.analytics}",
                f"--metrics-listen={pages[1]}",
                f'--edges=["{addresses.edge}"]',
                f"--database={folder / 'analytics.sqlite'}",
            ],
        )
        services.start(
            "decoder",
            addresses.decoder,
            [
                *common,
                f"--listen={addresses.decoder}",
                f"--metrics-listen={pages[2]}",
                f"--edge={addresses.edge}",
            ],
        )
        if addresses.console:
            services.start(
                "console",
                addresses.console,
                [
                    "--metrics-listen=",
                    "--log-format=json",
                    f"--listen={addresses.console}",
                    f'--edges=["{addresses.edge}"]',
                    f"--analytics={addresses.analytics}",
                    f"--decoder={addresses.decoder}",
                    f"--metrics-pages={json.dumps(pages)}",
                ],
                page=True,
            )
    except BaseException:
        services.stop()
        raise
    return services


async def _tell_story(
    addresses: _Addresses, pictures: list[Path], progress: Progress
) -> list[DemoFrame]:
    """Send the pictures, read what analytics says, reconstruct every face."""
    task = progress.add_task("encoding", total=len(pictures))
    async with (
        open_channel(addresses.edge) as edge,
        open_channel(addresses.analytics) as analytics,
        open_channel(addresses.decoder) as decoder,
    ):
        frames = []
        with sfic_errors("edge"):
            async for frame in _send(edge_pb2_grpc.EdgeIngestStub(edge), pictures):
                frames.append(frame)
                progress.advance(task)
        sent = time.monotonic()
        faces = {face.info.face_id: face for frame in frames for face in frame.faces}

        task = progress.add_task("analysing basic layers", total=len(faces))
        if faces:
            with sfic_errors("analytics"):
                await _read_results(
                    analytics_pb2_grpc.AnalyticsStub(analytics), faces, sent, progress, task
                )
        grant = await grant_all_faces(addresses.edge, "sfic demo", hours=1.0)
        progress.console.print(
            f"granted: the demo's decoder may see the demo's faces for an hour ({grant.grant_id})"
        )
        task = progress.add_task("reconstructing", total=len(LAYERS) * len(faces))
        stub = decoder_pb2_grpc.CloudDecoderStub(decoder)
        for face in faces.values():
            request = decoder_pb2.ReconstructRequest(face_id=face.info.face_id, purpose="demo")
            with sfic_errors("decoder"):
                async for level in stub.Reconstruct(request, timeout=_ANSWER_SECONDS):
                    name = common_pb2.Layer.Name(level.level).removeprefix("LAYER_").lower()
                    face.levels[name] = level
                    progress.advance(task)
    return frames


async def _send(
    stub: edge_pb2_grpc.EdgeIngestStub, pictures: list[Path]
) -> AsyncIterator[DemoFrame]:
    """Stream the pictures as one camera; yields what the edge kept of each."""

    async def requests() -> AsyncIterator[edge_pb2.StreamFramesRequest]:
        for number, path in enumerate(pictures):
            yield edge_pb2.StreamFramesRequest(
                camera_id="demo", frame_number=number, encoded=path.read_bytes()
            )

    async for receipt in stub.StreamFrames(requests()):
        path = pictures[receipt.frame_number]
        if receipt.HasField("error"):
            if len(pictures) == 1:
                raise _receipt_error(receipt.error, path)
            continue
        faces = [DemoFace(info) for info in receipt.faces]
        yield DemoFrame(path, faces, receipt.edge_ms, receipt.faces_below_gate)


def _receipt_error(error: edge_pb2.FrameError, path: Path) -> SficError:
    import sfic.errors

    for kind in vars(sfic.errors).values():
        if isinstance(kind, type) and issubclass(kind, SficError) and kind.code == error.code:
            return kind(f"{path}: {error.message}")
    return SficError(f"{path}: {error.message}")


async def _read_results(
    stub: analytics_pb2_grpc.AnalyticsStub,
    faces: dict[str, DemoFace],
    sent: float,
    progress: Progress,
    task: TaskID,
) -> None:
    """Read results until every face has one."""
    call = stub.SubscribeResults(analytics_pb2.SubscribeResultsRequest())
    missing = set(faces)

    async def read() -> None:
        async for message in call:
            face_id = message.analysis.face.face_id
            if face_id in missing:
                missing.remove(face_id)
                faces[face_id].analysis = message.analysis
                faces[face_id].analysis_ms = 1000 * (time.monotonic() - sent)
                progress.advance(task)
            if not missing:
                return

    try:
        await asyncio.wait_for(read(), _ANSWER_SECONDS)
    except asyncio.TimeoutError as error:
        raise Unavailable(f"analytics sent no result for {len(missing)} faces") from error
    finally:
        call.cancel()
