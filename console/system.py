"""How the services are: health, what they run on, cameras, and the figures of their metrics pages.

Belongs here: asking, and picking the figures that an operator wants. Does not belong here: how they
are shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import grpc
import httpx
from prometheus_client.parser import text_string_to_metric_families

from console.messages import face_json
from console.peers import Caller, Peers
from sfic.errors import AccessDenied
from sfic.service.client import from_rpc_error
from sfic.v1 import analytics_pb2, decoder_pb2

__all__ = ["FIGURES", "cameras", "figures", "services"]

_PAGE_SECONDS = 2.0
_CAMERA_SAMPLE = 500
_QUIET_CODES = ("OK", "CANCELLED")

# Figures of each kind of service by the name the page knows: how to read it, from which metric.
FIGURES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "edge": {
        "camera_streams": ("sum", "sfic_edge_camera_streams"),
        "frames": ("sum", "sfic_edge_frames_total"),
        "frames_in_flight": ("sum", "sfic_edge_frames_in_flight"),
        "encode_p95": ("p95", "sfic_edge_encode_seconds"),
        "subscribers": ("sum", "sfic_edge_feed_subscribers"),
        "store_faces": ("sum", "sfic_edge_store_faces"),
        "store_bytes": ("sum", "sfic_edge_store_bytes"),
        "evicted": ("sum", "sfic_edge_evicted_faces_total"),
        "feed_missed": ("sum", "sfic_edge_feed_missed_faces_total"),
    },
    "analytics": {
        "feeds": ("sum", "sfic_analytics_feed_connected"),
        "faces": ("sum", "sfic_analytics_faces_total"),
        "queue": ("sum", "sfic_analytics_queue_faces"),
        "newest_lag": ("max", "sfic_analytics_newest_lag_seconds"),
        "lag_p95": ("p95", "sfic_analytics_lag_seconds"),
        "search_p95": ("p95", "sfic_analytics_search_seconds"),
        "index_faces": ("sum", "sfic_analytics_index_faces"),
        "index_bytes": ("sum", "sfic_analytics_index_bytes"),
        "subscribers": ("sum", "sfic_analytics_subscribers"),
        "webhook_waiting": ("sum", "sfic_analytics_webhook_waiting"),
        "alerts": ("sum", "sfic_analytics_alerts_total"),
        "unknown": ("sum", "sfic_analytics_faces_unknown_total"),
        "pruned": ("sum", "sfic_analytics_results_pruned_total"),
        "forgotten": ("sum", "sfic_analytics_results_forgotten_total"),
        "missed": ("sum", "sfic_analytics_faces_missed_total"),
    },
    "decoder": {
        "requests": ("sum", "sfic_decoder_requests"),
        "pictures": ("sum", "sfic_decoder_pictures_total"),
        "synthesis_p95": ("p95", "sfic_decoder_synthesis_seconds"),
        "wait_p95": ("p95", "sfic_decoder_wait_seconds"),
        "fetch_p95": ("p95", "sfic_decoder_fetch_seconds"),
        "cache_faces": ("sum", "sfic_decoder_cache_faces"),
        "cache_bytes": ("sum", "sfic_decoder_cache_bytes"),
    },
}

Sample = tuple[str, dict[str, str], float]


async def services(peers: Peers, caller: Caller) -> list[dict[str, Any]]:
    """Every service with its health; the decoder also says what it runs on."""
    health = await peers.health(caller)
    shown = [asdict(each) for each in health]
    for each in shown:
        if each["kind"] == "decoder" and each["state"] == "serving":
            each["runs"] = await _decoder_info(peers, caller)
    return shown


async def cameras(peers: Peers, caller: Caller) -> list[dict[str, Any]]:
    """Cameras of the newest faces: how many faces each, the last one, and how usable they are."""
    asked = analytics_pb2.SearchFacesRequest(limit=_CAMERA_SAMPLE)
    answer = await peers.search(asked, caller)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for hit in answer.hits:
        face = face_json(hit.analysis)
        found.setdefault((face["camera"], face["edge"]), []).append(face)
    return [
        {
            "camera": camera,
            "edge": edge,
            "faces": len(faces),
            "last": max(face["captured"] for face in faces),
            "mean_score": sum(face["score"] for face in faces) / len(faces),
        }
        for (camera, edge), faces in sorted(found.items())
    ]


async def figures(addresses: Iterable[str]) -> list[dict[str, Any]]:
    """What each metrics page says; a page that cannot be read has kind "" and no figures."""
    async with httpx.AsyncClient(timeout=_PAGE_SECONDS, trust_env=False) as client:
        return list(await asyncio.gather(*(_page(client, address) for address in addresses)))


async def _page(client: httpx.AsyncClient, address: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"address": address, "kind": "", "figures": {}, "errors": []}
    try:
        answer = await client.get(f"http://{address}/metrics")
        answer.raise_for_status()
        samples = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        ]
    except (httpx.HTTPError, ValueError):
        return shown
    for kind, wanted in FIGURES.items():
        if any(name.startswith(f"sfic_{kind}_") for name, _, _ in samples):
            shown["kind"] = kind
            shown["figures"] = {
                name: _READERS[how](samples, metric) for name, (how, metric) in wanted.items()
            }
    facts = [labels for name, labels, _ in samples if name == f"sfic_{shown['kind']}_info"]
    shown["runs"] = dict(facts[0]) if facts else {}
    shown["errors"] = _errors(samples)
    return shown


def _sum(samples: list[Sample], metric: str) -> float | None:
    values = [value for name, _, value in samples if name == metric]
    return sum(values) if values else None


def _max(samples: list[Sample], metric: str) -> float | None:
    return max((value for name, _, value in samples if name == metric), default=None)


def _p95(samples: list[Sample], metric: str) -> float | None:
    """Upper bound of the bucket that holds the 95th percentile, over all labels; None: nothing."""
    buckets: dict[float, float] = {}
    for name, labels, value in samples:
        if name == f"{metric}_bucket":
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
    total = buckets.get(float("inf"), 0.0)
    if not total:
        return None
    bounds = sorted(buckets)
    finite = [bound for bound in bounds if bound != float("inf")]
    return next((b for b in finite if buckets[b] >= 0.95 * total), finite[-1] if finite else None)


_READERS = {"sum": _sum, "max": _max, "p95": _p95}


def _errors(samples: list[Sample]) -> list[dict[str, Any]]:
    return [
        {"method": labels["method"].rpartition("/")[2], "code": labels["code"], "calls": int(value)}
        for name, labels, value in samples
        if name == "sfic_grpc_calls_total" and labels["code"] not in _QUIET_CODES and value
    ]


async def _decoder_info(peers: Peers, caller: Caller) -> dict[str, Any]:
    try:
        caller.check("CloudDecoder/GetDecoderInfo")
        info = await peers.decoder.GetDecoderInfo(
            decoder_pb2.GetDecoderInfoRequest(), timeout=_PAGE_SECONDS, metadata=caller.metadata
        )
    except AccessDenied as refused:
        return {"error": refused.message}
    except grpc.RpcError as error:
        return {"error": from_rpc_error(error, "decoder").message}
    return {
        "model_bundle": info.model_bundle,
        "provider": info.provider,
        "threads": info.threads,
        "version": info.version,
        "edge": info.edge,
    }
