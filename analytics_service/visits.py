"""Visits: one person in front of one camera, from the first face to the last, is one visit.

Belongs here: which visit a face belongs to, and the visits that may still grow. Does not belong
here: their table (`analytics_service.store`), and what is done with visits.

A face joins the visit of its camera whose mean embedding is nearest, if that is near enough and its
last face not too long ago; else it starts one. Two faces of one frame are two persons.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sighting", "Visit", "VisitPlan", "VisitTracker"]

_MOST_OPEN: Final = 256
"""Visits that may grow at once, of one camera; more faces than any frame shows."""


@dataclass(frozen=True)
class Sighting:
    """A face as visits see it. `captured`: Unix nanoseconds; `embedding`: float32 [D], unit."""

    face_id: str
    camera_id: str
    captured: int
    frame_number: int
    face_score: float
    embedding: NDArray[np.float32]
    model_bundle: str
    """Embeddings of two bundles cannot be compared."""


@dataclass(frozen=True)
class Visit:
    """A visit as it is kept. `total`: sum of the embeddings of its faces, float32 [D]."""

    visit_id: str
    camera_id: str
    first: int
    last: int
    last_frame: int
    newest: int
    """Cursor of its newest result."""
    faces: int
    best_face_id: str
    best_score: float
    model_bundle: str
    total: NDArray[np.float32]

    def joined_by(self, face: Sighting, cursor: int) -> Visit:
        """The visit with one face more."""
        better = face.face_score > self.best_score
        latest = face.captured >= self.last
        return replace(
            self,
            first=min(self.first, face.captured),
            last=max(self.last, face.captured),
            last_frame=face.frame_number if latest else self.last_frame,
            newest=max(self.newest, cursor),
            faces=self.faces + 1,
            best_face_id=face.face_id if better else self.best_face_id,
            best_score=face.face_score if better else self.best_score,
            total=self.total + face.embedding,
        )

    @staticmethod
    def started_by(face: Sighting, cursor: int) -> Visit:
        """A visit of one face, named after it: the same faces give the same visits again."""
        return Visit(
            visit_id=face.face_id,
            camera_id=face.camera_id,
            first=face.captured,
            last=face.captured,
            last_frame=face.frame_number,
            newest=cursor,
            faces=1,
            best_face_id=face.face_id,
            best_score=face.face_score,
            model_bundle=face.model_bundle,
            total=face.embedding,
        )


class VisitPlan:
    """What a run of faces does to the visits, before it is known to be committed."""

    def __init__(self, tracker: VisitTracker) -> None:
        self.changed: dict[str, Visit] = {}
        self._tracker = tracker

    def place(self, face: Sighting, cursor: int) -> str:
        """The visit that the face belongs to; faces have to come in the order of their cursors."""
        visit = self._nearest(face)
        visit = visit.joined_by(face, cursor) if visit else Visit.started_by(face, cursor)
        self.changed[visit.visit_id] = visit
        return visit.visit_id

    def _nearest(self, face: Sighting) -> Visit | None:
        open_visits = {v.visit_id: v for v in self._tracker.open_at(face.camera_id)}
        for visit in self.changed.values():
            if visit.camera_id == face.camera_id:
                open_visits[visit.visit_id] = visit
        gap = self._tracker.gap
        near = [
            visit
            # Of equally near ones, the latest.
            for visit in sorted(open_visits.values(), key=lambda visit: -visit.newest)
            if visit.first - gap <= face.captured <= visit.last + gap
            and (visit.last, visit.last_frame) != (face.captured, face.frame_number)
            and visit.model_bundle == face.model_bundle
        ]
        if not near:
            return None
        totals = np.stack([visit.total for visit in near])  # [N, D]
        lengths = np.maximum(np.linalg.norm(totals, axis=1), 1e-12)
        cosines = totals @ face.embedding / lengths  # [N]
        best = int(np.argmax(cosines))
        return near[best] if cosines[best] >= self._tracker.similarity else None


class VisitTracker:
    """The visits that may still grow. Used from the thread that writes the database."""

    def __init__(self, gap_seconds: float, similarity: float) -> None:
        self.gap = int(gap_seconds * 1e9)
        """Longest time between two faces of a visit, in nanoseconds."""
        self.similarity = similarity
        """Cosine with the mean of a visit's faces from which a face belongs to it."""
        self._open: dict[str, OrderedDict[str, Visit]] = {}

    def plan(self) -> VisitPlan:
        """Starts to place faces; `accept` what came of it, or drop it."""
        return VisitPlan(self)

    def accept(self, visits: Iterable[Visit]) -> None:
        """Takes over visits as they are kept now, oldest change first."""
        for visit in visits:
            of_camera = self._open.setdefault(visit.camera_id, OrderedDict())
            of_camera[visit.visit_id] = visit
            of_camera.move_to_end(visit.visit_id)
            # Seen from the newest face: clocks that jump must not keep visits open for ever.
            for other in [v for v in of_camera.values() if v.last + self.gap < visit.last]:
                del of_camera[other.visit_id]
            while len(of_camera) > _MOST_OPEN:
                of_camera.popitem(last=False)

    def replace_all(self, visits: Sequence[Visit]) -> None:
        """Starts anew from what is kept, oldest change first."""
        self._open.clear()
        self.accept(visits)

    def open_at(self, camera_id: str) -> Iterable[Visit]:
        """The visits of a camera that may still grow."""
        return self._open.get(camera_id, OrderedDict()).values()
