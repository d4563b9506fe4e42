"""Results in their three forms: the codec's `Analysis`, the message `FaceAnalysis`, a table row.

Belongs here: turning one form into another. Does not belong here: where they are kept or sent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analytics_service.search import IndexEntry
from sfic.analysis import Analysis
from sfic.errors import BundleMismatch, InvalidInput
from sfic.v1 import analytics_pb2, common_pb2

__all__ = ["StoredResult", "index_entry", "make_result"]

_STORED_FLOAT = np.dtype("<f4")
# Nanoseconds since 1970 fit into 64 bits until the year 2262.
_LAST_SECOND = 2**63 // 10**9


@dataclass(frozen=True)
class StoredResult:
    """A result as it is kept.

    `cursor` counts results from 1, 0 before it is kept. `analysis` is a serialised `FaceAnalysis`
    without its embedding; `embedding` holds that as little-endian float32 [D].
    """

    cursor: int
    face_id: str
    analysed: int
    analysis: bytes
    embedding: bytes

    def vector(self) -> NDArray[np.float32]:
        """The embedding, float32 [D], unit length."""
        return np.frombuffer(self.embedding, _STORED_FLOAT).astype(np.float32, copy=False)

    def message(self) -> analytics_pb2.FaceAnalysis:
        """The result as it is sent, embedding included."""
        message: analytics_pb2.FaceAnalysis = analytics_pb2.FaceAnalysis.FromString(self.analysis)
        message.embedding.extend(self.vector().tolist())
        return message


def make_result(face: common_pb2.FaceInfo, analysis: Analysis, model_bundle: str) -> StoredResult:
    """A new result, made now with `model_bundle` and not kept yet.

    Raises `BundleMismatch` for a face of another bundle whose packet was decoded only because the
    two bytes of the bundle's hash in it agree, `InvalidInput` for a capture time that no clock
    shows.
    """
    now = time.time_ns()
    if face.model_bundle != model_bundle:
        raise BundleMismatch(
            f"face was coded with model bundle {face.model_bundle}, the one loaded is"
            f" {model_bundle}"
        )
    if not 0 <= face.capture_time.seconds < _LAST_SECOND:
        raise InvalidInput(f"capture time of {face.capture_time.seconds} s is out of range")
    message = analytics_pb2.FaceAnalysis(
        face=face,
        embedding_confidence=analysis.embedding_confidence,
        age=_estimate(analysis.age.value, analysis.age.confidence),
        gender=_estimate(analysis.gender.value, analysis.gender.confidence),
        smile=_estimate(analysis.smile.value, analysis.smile.confidence),
        yaw=_estimate(analysis.pose.yaw, analysis.pose.confidence),
        pitch=_estimate(analysis.pose.pitch, analysis.pose.confidence),
        roll=_estimate(analysis.pose.roll, analysis.pose.confidence),
        landmarks=np.asarray(analysis.landmarks, np.float32).ravel().tolist(),
        landmarks_confidence=analysis.landmarks_confidence,
    )
    message.analysed_time.FromNanoseconds(now)
    return StoredResult(
        cursor=0,
        face_id=face.face_id,
        analysed=now,
        analysis=message.SerializeToString(),
        embedding=np.asarray(analysis.embedding, _STORED_FLOAT).tobytes(),
    )


def index_entry(result: StoredResult, model_bundle: str) -> IndexEntry:
    """The result as the likeness index keeps it; comparable only within `model_bundle`."""
    message = analytics_pb2.FaceAnalysis.FromString(result.analysis)
    return IndexEntry(
        cursor=result.cursor,
        camera_id=message.face.camera_id,
        captured=message.face.capture_time.ToNanoseconds(),
        face_score=message.face.face_score,
        age=message.age.value,
        gender=message.gender.value,
        smile=message.smile.value,
        embedding=result.vector() if message.face.model_bundle == model_bundle else None,
    )


def _estimate(value: float, confidence: float) -> analytics_pb2.Estimate:
    return analytics_pb2.Estimate(value=float(value), confidence=float(confidence))
