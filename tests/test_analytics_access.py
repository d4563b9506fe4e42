"""Analytics cannot get at more: its own identity is refused everything but basic layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from service_rig import codec, encoded_faces, running_edge
from services_util import running
from test_analytics import read_results

from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from sfic.certificates import issue, make_ca
from sfic.errors import AccessDenied
from sfic.service.client import open_channel, sfic_errors
from sfic.service.identity import Identity
from sfic.v1 import control_pb2, control_pb2_grpc, edge_pb2, edge_pb2_grpc
from sfic.v1.analytics_pb2_grpc import AnalyticsStub


async def test_the_identity_of_analytics_gets_basic_layers_only(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    make_ca(certs)
    issue(certs, "server")
    issue(certs, "analytics", ["analytics"])
    edge_tls = {
        "tls_certificate": certs / "server.pem",
        "tls_key": certs / "server-key.pem",
        "tls_client_ca": certs / "ca.pem",
    }
    own: dict[str, Any] = {
        "tls_certificate": certs / "analytics.pem",
        "tls_key": certs / "analytics-key.pem",
        "edge_ca": certs / "ca.pem",
    }
    async with running_edge(tmp_path / "edge", **edge_tls) as edge:
        (face_id,) = await edge.keep(encoded_faces()[:1])
        # With exactly the settings of the service, which reads the basic layer with them,
        settings = AnalyticsSettings.make(
            **own,
            listen="127.0.0.1:0",
            metrics_listen="",
            edges=[edge.address],
            database=tmp_path / "analytics.sqlite",
        )
        client = Identity(ca=certs / "ca.pem")
        async with (
            running(AnalyticsService(settings, codec()), settings) as server,
            open_channel(server.address, identity=client) as channel,
        ):
            (result,) = await read_results(AnalyticsStub(channel), 1)
        assert result.analysis.face.face_id == face_id
        # nothing else is to be had at the edge.
        identity = settings.edge_identity()
        async with open_channel(edge.address, identity=identity, retry=False) as channel:
            store = edge_pb2_grpc.LayerStoreStub(channel)
            control = control_pb2_grpc.EdgeControlStub(channel)
            for call in (
                store.FetchLayers(edge_pb2.FetchLayersRequest(face_ids=[face_id])),
                store.FetchLayers(edge_pb2.FetchLayersRequest(face_ids=[face_id], layers=[1])),
                store.FetchKeys(edge_pb2.FetchKeysRequest()),
                control.CreateGrant(control_pb2.CreateGrantRequest()),
                control.ReadAudit(control_pb2.ReadAuditRequest()),
            ):
                with pytest.raises(AccessDenied), sfic_errors():
                    if hasattr(call, "read"):
                        await call.read()
                    else:
                        await call
