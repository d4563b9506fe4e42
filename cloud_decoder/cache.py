"""The decoder's cache of layers: sealed ones lately fetched, bounded by bytes and by age.

Belongs here: what is kept, for how long, and what makes room. Does not belong here: fetching.

In memory and not in SQLite, for three reasons: a face is some 1.3 kB, so that 64 MB hold about
fifty thousand faces; whatever is lost in a restart costs one more fetch of a kilobyte; and layers
that show a face never come to lie on the cloud's disk. What is kept is sealed, and no key is:
nothing can be seen here without asking the edge again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sfic.v1 import common_pb2

__all__ = ["CachedFace", "LayerCache"]

# What an entry takes beside its packets: the face's description and Python's own objects.
_ENTRY_OVERHEAD = 1024


@dataclass
class CachedFace:
    """What is known of one face: its description and the sealed layers by name."""

    info: common_pb2.FaceInfo
    layers: dict[str, bytes] = field(default_factory=dict)
    stored: float = 0.0

    @property
    def bytes_used(self) -> int:
        """Bytes that count against the bound."""
        return _ENTRY_OVERHEAD + sum(map(len, self.layers.values()))


class LayerCache:
    """Faces by id, least recently used first out. Used from one thread, the event loop's."""

    def __init__(
        self,
        max_bytes: int,
        max_age: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_bytes` 0 keeps nothing; `max_age` in seconds since the face was first fetched."""
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._clock = clock
        self._faces: OrderedDict[str, CachedFace] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._faces)

    @property
    def bytes_used(self) -> int:
        """Bytes kept, never more than `max_bytes`."""
        return self._bytes

    def get(self, face_id: str) -> CachedFace | None:
        """The face's entry, or None when it is not kept or too old."""
        face = self._faces.get(face_id)
        if face is None:
            return None
        if self._clock() - face.stored > self._max_age:
            self.drop(face_id)
            return None
        self._faces.move_to_end(face_id)
        return face

    def put(
        self, face_id: str, info: common_pb2.FaceInfo, layers: Mapping[str, bytes]
    ) -> CachedFace:
        """Adds layers to a face and makes room; returns the entry, kept or not."""
        known = self.get(face_id)
        self.drop(face_id)
        face = CachedFace(
            info,
            {**(known.layers if known else {}), **layers},
            known.stored if known else self._clock(),
        )
        if face.bytes_used <= self._max_bytes:
            self._faces[face_id] = face
            self._bytes += face.bytes_used
            while self._bytes > self._max_bytes:
                self.drop(next(iter(self._faces)))
        return face

    def drop(self, face_id: str) -> None:
        """Forgets a face."""
        face = self._faces.pop(face_id, None)
        if face is not None:
            self._bytes -= face.bytes_used

    def drop_if(self, unwanted: Callable[[common_pb2.FaceInfo], bool]) -> None:
        """Forgets every face that is unwanted."""
        for face_id in [name for name, face in self._faces.items() if unwanted(face.info)]:
            self.drop(face_id)

    def expire(self) -> None:
        """Forgets every face past its age, also those that nobody asks for again."""
        oldest = self._clock() - self._max_age
        for face_id in [name for name, face in self._faces.items() if face.stored < oldest]:
            self.drop(face_id)
