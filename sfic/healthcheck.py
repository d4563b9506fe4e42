"""`python -m sfic.healthcheck [HOST:PORT]`: exit 0 when the service there takes calls.

For container health checks. Without an address it asks this machine, on the default port of the
service that `SFIC_SERVICE` names. Standard gRPC health checking (grpc.health.v1), nothing more; of
the console, which is a page, `GET /healthz`.
"""

from __future__ import annotations

import os
import sys

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["serves", "serves_page"]

_PORTS = {"edge": 50051, "analytics": 50052, "decoder": 50053, "console": 50080}


def serves(address: str, timeout_seconds: float = 3.0) -> bool:
    """Whether the service at "host:port" says SERVING."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_seconds
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def serves_page(address: str, timeout_seconds: float = 3.0) -> bool:
    """Whether the console at "host:port" takes requests."""
    try:
        answer = httpx.get(f"http://{address}/healthz", timeout=timeout_seconds, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


if __name__ == "__main__":
    service = os.environ.get("SFIC_SERVICE", "edge")
    address = sys.argv[1] if len(sys.argv) > 1 else f"127.0.0.1:{_PORTS[service]}"
    sys.exit(not (serves_page if service == "console" else serves)(address))
