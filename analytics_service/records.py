"""Results in their three forms: the codec's `Analysis`, the message `FaceAnalysis`, a table row.

Belongs here: turning one form into another. Does not belong here: where they are kept or sent.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analytics_service.search import IndexEntry
from analytics_service.visits import Sighting
from sfic.analysis import Analysis
from sfic.errors import InvalidInput
from sfic.v1 import analytics_pb2, common_pb2

__all__ = ["StoredResult", "make_result", "read_result", "stored_vector", "vector_bytes"]

_STORED_FLOAT = np.dtype("<f4")
# Nanoseconds since 1970 fit into 64 bits until the year 2262.
_LAST_SECOND = 2**63 // 10**9


@dataclass(frozen=True)
class StoredResult:
    """A result as it is kept; the fields are the columns, in their order.

    `cursor` counts results from 1, 0 before it is kept. `analysis` is a serialised `FaceAnalysis`
    without its embedding and visit; `embedding` holds that as little-endian float32 [D], empty when
    the face is unknown, and `age`, `gender` and `smile` are None then. `captured` and `analysed`:
    Unix nanoseconds.
    """

    cursor: int
    face_id: str
    analysed: int
    analysis: bytes
    embedding: bytes
    camera_id: str
    captured: int
    face_score: float
    model_bundle: str
    age: float | None
    gender: float | None
    smile: float | None
    visit_id: str | None = None

    def vector(self) -> NDArray[np.float32]:
        """The embedding, float32 [D], unit length; [0] of an unknown face."""
        return stored_vector(self.embedding)

    def message(self) -> analytics_pb2.FaceAnalysis:
        """The result as it is sent, embedding and visit included."""
        message: analytics_pb2.FaceAnalysis = analytics_pb2.FaceAnalysis.FromString(self.analysis)
        message.embedding.extend(self.vector().tolist())
        message.visit_id = self.visit_id or ""
        return message

    def face(self) -> common_pb2.FaceInfo:
        """What the edge said of the face."""
        face: common_pb2.FaceInfo = analytics_pb2.FaceAnalysis.FromString(self.analysis).face
        return face

    def sighting(self) -> Sighting:
        """The face as visits see it."""
        return Sighting(
            face_id=self.face_id,
            camera_id=self.camera_id,
            captured=self.captured,
            frame_number=self.face().frame_number,
            face_score=self.face_score,
            embedding=self.vector(),
            model_bundle=self.model_bundle,
        )

    def index_entry(self, model_bundle: str) -> IndexEntry:
        """The result as the likeness index keeps it; comparable only within `model_bundle`."""
        comparable = self.model_bundle == model_bundle and bool(self.embedding)
        return IndexEntry(
            cursor=self.cursor,
            camera_id=self.camera_id,
            captured=self.captured,
            face_score=self.face_score,
            age=self.age,
            gender=self.gender,
            smile=self.smile,
            embedding=self.vector() if comparable else None,
        )


def make_result(
    face: common_pb2.FaceInfo,
    analysis: Analysis,
    lowest_score: float,
    now: int,
    keep_parsing: bool = False,
) -> StoredResult:
    """A new result, made at `now` (Unix ns), not kept yet; `analysis` is by the face's own bundle.

    A face whose score, the edge's or the one read from its basic layer, is under `lowest_score` is
    unknown: nothing that was read from it is kept. `keep_parsing`: the parsing map is part of the
    result, not only what its classes cover. Raises `InvalidInput` for a capture time that no clock
    shows.
    """
    if not 0 <= face.capture_time.seconds < _LAST_SECOND:
        raise InvalidInput(f"capture time of {face.capture_time.seconds} s is out of range")
    known = min(face.face_score, analysis.face_score.value) >= lowest_score
    message = analytics_pb2.FaceAnalysis(
        face=face,
        status="RESULT_STATUS_KNOWN" if known else "RESULT_STATUS_UNKNOWN",
        face_score=_estimate(analysis.face_score.value, analysis.face_score.confidence),
    )
    if known:
        _fill(message, analysis)
        if keep_parsing:
            message.parsing = zlib.compress(analysis.parsing.tobytes())
    message.analysed_time.FromNanoseconds(now)
    return StoredResult(
        cursor=0,
        face_id=face.face_id,
        analysed=now,
        analysis=message.SerializeToString(),
        embedding=vector_bytes(analysis.embedding) if known else b"",
        camera_id=face.camera_id,
        captured=face.capture_time.ToNanoseconds(),
        face_score=face.face_score,
        model_bundle=face.model_bundle,
        age=analysis.age.value if known else None,
        gender=analysis.gender.value if known else None,
        smile=analysis.smile.value if known else None,
    )


def read_result(message: analytics_pb2.FaceAnalysis) -> StoredResult:
    """The result of which another replica sends the message, not kept here yet."""
    kept = analytics_pb2.FaceAnalysis()
    kept.CopyFrom(message)
    kept.ClearField("embedding")
    known = message.status == analytics_pb2.RESULT_STATUS_KNOWN
    return StoredResult(
        cursor=0,
        face_id=message.face.face_id,
        analysed=message.analysed_time.ToNanoseconds(),
        analysis=kept.SerializeToString(),
        embedding=vector_bytes(np.array(message.embedding, np.float32)),
        camera_id=message.face.camera_id,
        captured=message.face.capture_time.ToNanoseconds(),
        face_score=message.face.face_score,
        model_bundle=message.face.model_bundle,
        age=message.age.value if known else None,
        gender=message.gender.value if known else None,
        smile=message.smile.value if known else None,
    )


def vector_bytes(vector: NDArray[np.float32]) -> bytes:
    """An embedding as it is kept."""
    return np.asarray(vector, _STORED_FLOAT).tobytes()


def stored_vector(data: bytes) -> NDArray[np.float32]:
    """The embedding that `vector_bytes` made."""
    return np.frombuffer(data, _STORED_FLOAT).astype(np.float32, copy=False)


def _fill(message: analytics_pb2.FaceAnalysis, analysis: Analysis) -> None:
    """What was read from the face, each with its confidence; the embedding is kept beside it."""
    pose = analysis.pose
    message.embedding_confidence = analysis.embedding_confidence
    message.age.CopyFrom(_estimate(analysis.age.value, analysis.age.confidence))
    message.gender.CopyFrom(_estimate(analysis.gender.value, analysis.gender.confidence))
    message.smile.CopyFrom(_estimate(analysis.smile.value, analysis.smile.confidence))
    message.yaw.CopyFrom(_estimate(pose.yaw, pose.confidence))
    message.pitch.CopyFrom(_estimate(pose.pitch, pose.confidence))
    message.roll.CopyFrom(_estimate(pose.roll, pose.confidence))
    message.landmarks.extend(np.asarray(analysis.landmarks, np.float32).ravel().tolist())
    message.landmarks_confidence = analysis.landmarks_confidence
    message.expression.name = analysis.expression.name
    message.expression.confidence = analysis.expression.confidence
    for name in ("glasses", "eyes_open", "mouth_open", "facial_hair"):
        read = getattr(analysis, name)
        getattr(message, name).CopyFrom(_estimate(read.value, read.confidence))
    message.areas.extend(analysis.areas.tolist())


def _estimate(value: float, confidence: float) -> analytics_pb2.Estimate:
    return analytics_pb2.Estimate(value=float(value), confidence=float(confidence))
