"""`python -m sfic.healthcheck [HOST:PORT]`: exit 0 when the service there takes calls.

For container health checks. Without an address it asks this machine's own service, which
`SFIC_SERVICE` names and the file `SFIC_CONFIG` and the environment set up, as it is set up: over
TLS with the service's own certificate where it has one. Standard gRPC health checking
(grpc.health.v1), nothing more; of the console, which is a page, `GET /healthz`.
"""

from __future__ import annotations

import os
import sys

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sfic.errors import SficError
from sfic.service.identity import Identity
from sfic.service.settings import ServiceSettings

__all__ = ["serves", "serves_page", "settings_of"]


def serves(address: str, timeout_seconds: float = 3.0, identity: Identity | None = None) -> bool:
    """Whether the service at "host:port" says SERVING."""
    identity = identity or Identity()
    credentials, options = identity.credentials(), identity.options()
    with (
        grpc.insecure_channel(address)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    ) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_seconds
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def serves_page(address: str, timeout_seconds: float = 3.0, tls: bool = False) -> bool:
    """Whether the console at "host:port" takes requests."""
    try:
        # The certificate names the page, not this machine; nothing is told or believed here.
        answer = httpx.get(
            f"http{'s' if tls else ''}://{address}/healthz",
            timeout=timeout_seconds,
            trust_env=False,
            verify=False,
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def settings_of(service: str) -> type[ServiceSettings]:
    """The settings of a service by its name. What they need is imported here only."""
    if service == "analytics":
        from analytics_service.settings import AnalyticsSettings

        return AnalyticsSettings
    if service == "decoder":
        from cloud_decoder.settings import DecoderSettings

        return DecoderSettings
    if service == "console":
        from console.settings import ConsoleSettings

        return ConsoleSettings
    from edge_encoder.settings import EdgeSettings

    return EdgeSettings


def _own_service_serves() -> bool:
    kind = settings_of(os.environ.get("SFIC_SERVICE", "edge"))
    settings = kind.load(config=os.environ.get("SFIC_CONFIG"))
    address = f"127.0.0.1:{settings.listen.rpartition(':')[2]}"
    if kind.service == "console":
        return serves_page(address, tls=settings.tls_certificate is not None)
    return serves(address, identity=settings.own_identity())


if __name__ == "__main__":
    try:
        ready = serves(sys.argv[1]) if len(sys.argv) > 1 else _own_service_serves()
    except SficError as error:
        sys.exit(error.message)
    sys.exit(not ready)
