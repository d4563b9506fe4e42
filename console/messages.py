"""Faces as the page reads them: JSON of the services' messages, and requests from what it sends.

Belongs here: turning one form into another. Does not belong here: asking for them.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, ConfigDict, Field

from sfic.face import brightened
from sfic.v1 import analytics_pb2, common_pb2

__all__ = ["Interval", "SearchForm", "alert_json", "entry_json", "face_json", "layer_name"]


class Interval(BaseModel):
    """A closed interval; a side that is unset is open."""

    model_config = ConfigDict(extra="forbid")
    min: float | None = None
    max: float | None = None


class SearchForm(BaseModel):
    """What the page searches by; all that is set must hold."""

    model_config = ConfigDict(extra="forbid")
    face_id: str | None = Field(None, max_length=64)
    cameras: list[str] = Field(default_factory=list, max_length=256)
    captured_from: datetime | None = None
    captured_until: datetime | None = None
    age: Interval = Field(default_factory=Interval)
    gender: Interval = Field(default_factory=Interval)
    smile: Interval = Field(default_factory=Interval)
    min_face_score: float = 0.0
    min_similarity: float | None = None
    limit: int = Field(100, ge=1, le=1000)
    page: str = Field(default="", max_length=4096)
    """Token of the page before; the rest of the form is as it was then."""

    def request(self) -> analytics_pb2.SearchFacesRequest:
        """The same for analytics."""
        asked = analytics_pb2.SearchFacesRequest(
            camera_ids=self.cameras, min_face_score=self.min_face_score, limit=self.limit
        )
        asked.page_token = self.page
        if self.face_id:
            asked.face_id = self.face_id
        for name in ("captured_from", "captured_until"):
            moment: datetime | None = getattr(self, name)
            if moment is not None:
                aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
                getattr(asked, name).FromDatetime(aware)
        for name in ("age", "gender", "smile"):
            interval: Interval = getattr(self, name)
            if interval.min is not None:
                getattr(asked, name).min = interval.min
            if interval.max is not None:
                getattr(asked, name).max = interval.max
        if self.min_similarity is not None:
            asked.min_similarity = self.min_similarity
        return asked


def layer_name(number: int) -> str:
    """basic, middle or enhanced."""
    return str(common_pb2.Layer.Name(number)).removeprefix("LAYER_").lower()


def face_json(analysis: analytics_pb2.FaceAnalysis, detail: bool = False) -> dict[str, Any]:
    """A face and what analytics says of it; `detail` adds what only one face at a time needs.

    The embedding stays with the services: nobody can look at it, and it is biometric.
    """
    face = analysis.face
    estimates = {
        field.name: {"value": _short(value.value), "confidence": _short(value.confidence)}
        for field, value in analysis.ListFields()
        if field.message_type is analytics_pb2.Estimate.DESCRIPTOR
    }
    shown: dict[str, Any] = {
        "id": face.face_id,
        "camera": face.camera_id,
        "edge": face.edge_id,
        "captured": _milliseconds(face.capture_time),
        "analysed": _milliseconds(analysis.analysed_time),
        "score": _short(face.face_score),
        "visit": analysis.visit_id,
        "estimates": estimates,
    }
    if detail:
        shown |= {
            "rate": face.rate,
            "brightened": _short(brightened(face)),
            "frame_number": face.frame_number,
            "model_bundle": face.model_bundle,
            "layer_bytes": list(face.layer_bytes),
            "frame": [face.placement.frame_width, face.placement.frame_height]
            if face.placement.crop_to_frame
            else None,
            "embedding_confidence": _short(analysis.embedding_confidence),
            "landmarks": [_short(value) for value in analysis.landmarks],
            "landmarks_confidence": _short(analysis.landmarks_confidence),
        }
    return shown


def entry_json(entry: analytics_pb2.WatchlistEntry) -> dict[str, Any]:
    """An entry of a watchlist."""
    return {
        "id": entry.entry_id,
        "label": entry.label,
        "created": _milliseconds(entry.created_time),
        "expires": _milliseconds(entry.expires_time) if entry.HasField("expires_time") else None,
        "outdated": entry.outdated,
    }


def alert_json(alert: analytics_pb2.Alert) -> dict[str, Any]:
    """An alert, with what a card needs of its face."""
    return {
        "watchlist": alert.watchlist_id,
        "entry": alert.entry_id,
        "label": alert.label,
        "similarity": _short(alert.similarity),
        "raised": _milliseconds(alert.raised_time),
        "face": {
            "id": alert.face.face_id,
            "camera": alert.face.camera_id,
            "captured": _milliseconds(alert.face.capture_time),
            "score": _short(alert.face.face_score),
            "visit": alert.visit_id,
            "estimates": {},
        },
    }


def _short(value: float) -> float:
    return round(value, 4)


def _milliseconds(stamp: Timestamp) -> int:
    return int(stamp.ToMilliseconds())
