"""Writes the databases that tests/test_upgrade.py reads: run it at a release, not before a test.

    python -m tests.make_release_data FOLDER

An edge and an analytics service as they are at this commit, with faces of the demo's photograph, a
grant, an order to forget and a watchlist. `contents.json` says what the next release has to find.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from service_rig import encoded_faces, eventually, running_edge
from services_util import codec, running

from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from sfic.client import AnalyticsClient
from sfic.service.client import open_channel
from sfic.v1 import analytics_pb2, analytics_pb2_grpc, control_pb2, control_pb2_grpc

CAPTURED = 1_795_000_000.0


async def write(folder: Path) -> None:
    """Fill both databases, then close them in good order."""
    faces = encoded_faces()
    async with running_edge(folder) as edge:
        ids = await edge.keep(faces[:3], captured=CAPTURED, score=0.9)
        settings = AnalyticsSettings.make(
            listen="127.0.0.1:0",
            metrics_listen="",
            edges=(edge.address,),
            database=folder / "analytics.sqlite",
            watchlists=True,
            threads=1,
        )
        service = AnalyticsService(settings, codec())
        async with running(service, settings) as server:

            async def kept() -> int:
                async with AnalyticsClient(server.address) as client:
                    return len([r async for r in client.results(follow=False)])

            async def has(count: int) -> bool:
                return await kept() == count

            await eventually(lambda: has(3))
            async with open_channel(server.address) as channel:
                stub = analytics_pb2_grpc.AnalyticsStub(channel)
                await stub.PutWatchlist(
                    analytics_pb2.PutWatchlistRequest(
                        watchlist=analytics_pb2.Watchlist(
                            watchlist_id="lost", purpose="a test", threshold=0.5
                        )
                    )
                )
            async with open_channel(edge.address) as channel:
                order = control_pb2.ForgetRequest(reason="a test")
                order.scope.face_ids.append(ids[2])
                await control_pb2_grpc.EdgeControlStub(channel).Forget(order)
            await eventually(lambda: has(2))
    contents = {
        "model_bundle": codec().model_bundle,
        "kept": {
            face_id: {
                name: hashlib.sha256(packet).hexdigest() for name, packet in face.layers.items()
            }
            for face_id, face in zip(ids[:2], faces, strict=False)
        },
        "forgotten": ids[2],
    }
    (folder / "contents.json").write_text(json.dumps(contents, indent=1) + "\n")
    for path in folder.glob("*.sqlite"):
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
