"""The three services as processes of their own, from a camera's frame to the picture."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from service_rig import eventually, start_process

from sfic.audit import read_log, verify_lines
from sfic.camera import Camera
from sfic.grants import grant_all_faces
from sfic.locations import demo_photograph
from sfic.pictures import read_picture
from sfic.service.client import open_channel
from sfic.sources import open_source
from sfic.v1 import (
    analytics_pb2,
    analytics_pb2_grpc,
    common_pb2,
    decoder_pb2,
    decoder_pb2_grpc,
)


class Process:
    """A service started as an operator starts it, on ports of its own choice."""

    def __init__(self, module: str, folder: Path, *arguments: str) -> None:
        self.module = module
        self._log = folder / f"{module}.log"
        self.popen: subprocess.Popen[bytes] = start_process(
            module,
            "--listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0",
            "--provider=cpu",
            "--threads=1",
            *arguments,
            log=self._log,
        )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def events(self) -> Iterator[dict[str, object]]:
        for line in self.log.splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    async def serving(self) -> tuple[str, str]:
        """Its address and that of its metrics, once it takes calls."""

        def found() -> bool:
            assert self.popen.poll() is None, f"{self.module} ended: {self.log}"
            return any(event.get("event") == "serving" for event in self.events())

        await eventually(found, 90)
        event = next(event for event in self.events() if event.get("event") == "serving")
        return str(event["address"]), str(event["metrics"])


async def test_from_a_frame_to_results_and_picture(tmp_path: Path) -> None:
    processes: list[Process] = []
    try:
        edge = Process("edge_encoder", tmp_path, f"--data-dir={tmp_path / 'edge'}", "--workers=1")
        processes.append(edge)
        edge_address, _ = await edge.serving()
        await grant_all_faces(edge_address, "a test", 1.0)
        analytics = Process(
            "analytics_service",
            tmp_path,
            f'--edges=["{edge_address}"]',
            f"--database={tmp_path / 'analytics.sqlite'}",
        )
        decoder = Process("cloud_decoder", tmp_path, f"--edge={edge_address}")
        processes += [analytics, decoder]
        analytics_address, analytics_metrics = await analytics.serving()
        decoder_address, decoder_metrics = await decoder.serving()

        camera = Camera(open_source(str(demo_photograph())), edge_address, camera_id="door")
        (receipt,) = [receipt async for receipt in camera.receipts()]
        assert receipt.error_code == ""
        (face,) = receipt.faces

        async with open_channel(analytics_address) as channel:
            stub = analytics_pb2_grpc.AnalyticsStub(channel)
            call = stub.SubscribeResults(analytics_pb2.SubscribeResultsRequest())
            result = (await asyncio.wait_for(call.read(), 30)).analysis
            call.cancel()
            found = await stub.SearchFaces(
                analytics_pb2.SearchFacesRequest(face_id=face.face_id, camera_ids=["door"])
            )
        assert result.face == face
        assert np.linalg.norm(result.embedding) == pytest.approx(1.0, abs=1e-3)
        assert 0 <= result.age.value < 120
        (hit,) = found.hits
        assert hit.analysis == result

        async with open_channel(decoder_address) as channel:
            pictures = [
                answer
                async for answer in decoder_pb2_grpc.CloudDecoderStub(channel).Reconstruct(
                    decoder_pb2.ReconstructRequest(face_id=face.face_id, size=256, purpose="test")
                )
            ]
        assert [picture.level for picture in pictures] == [
            common_pb2.LAYER_BASIC,
            common_pb2.LAYER_MIDDLE,
            common_pb2.LAYER_ENHANCED,
        ]
        assert pictures[-1].layer_bytes == sum(face.layer_bytes)
        for picture in pictures:
            assert read_picture(picture.picture).shape == (256, 256, 3)
            assert read_picture(picture.picture).std() > 10

        for address, name in (
            (edge_address, "sfic.v1.BasicLayerFeed"),
            (analytics_address, "sfic.v1.Analytics"),
            (decoder_address, "sfic.v1.CloudDecoder"),
        ):
            await check_health_and_reflection(address, name)
        for address, metric in (
            (analytics_metrics, 'sfic_analytics_faces_total{edge="%s",outcome="OK"} 1.0'),
            (analytics_metrics, "sfic_analytics_lag_seconds_count 1.0"),
            (decoder_metrics, 'sfic_decoder_pictures_total{level="enhanced"} 1.0'),
            (decoder_metrics, "sfic_decoder_fetch_calls_total 3.0"),
        ):
            page = await asyncio.to_thread(read_page, f"http://{address}/metrics")
            assert (metric.replace("%s", edge_address)) in page
        lines, head = read_log(tmp_path / "edge" / "audit.jsonl")
        whole = list(lines)
        assert verify_lines(whole, head).problems == []
        told = [json.loads(line) for line in whole]
        assert [(line["action"], line["why"]) for line in told] == [
            ("grant", "a test"),
            ("reconstruct", "test"),
        ]
        assert told[1]["what"]["face_id"] == face.face_id
        purposes = [event.get("purpose") for event in decoder.events()]
        assert "test" in purposes

        for process in processes:
            process.popen.send_signal(signal.SIGTERM)
        for process in processes:
            assert await asyncio.to_thread(process.popen.wait, 30) == 0, process.log
            assert "Traceback" not in process.log
            assert any(event.get("event") == "stopped" for event in process.events())
    finally:
        for process in processes:
            if process.popen.poll() is None:
                process.popen.kill()
                process.popen.wait()


def read_page(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as page:
        return str(page.read().decode())


async def check_health_and_reflection(address: str, name: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=name), timeout=10
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        answer = await call.read()
        call.cancel()
    assert name in [service.name for service in answer.list_services_response.service]
