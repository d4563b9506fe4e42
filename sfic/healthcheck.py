"""`python -m sfic.healthcheck [HOST:PORT]`: exit 0 when the service there takes calls.

For container health checks. Without an address it asks this machine, on the default port of the
service that `SFIC_SERVICE` names. Standard gRPC health checking (grpc.health.v1), nothing more.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["serves"]

_PORTS = {"edge": 50051, "analytics": 50052, "decoder": 50053}


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


if __name__ == "__main__":
    port = _PORTS[os.environ.get("SFIC_SERVICE", "edge")]
    sys.exit(not serves(sys.argv[1] if len(sys.argv) > 1 else f"127.0.0.1:{port}"))
