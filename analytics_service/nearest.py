"""The approximate index under the likeness index: usearch's HNSW graph, for many faces.

Belongs here: building, keeping and asking the graph. Does not belong here: filters, exact cosines,
and the truth of what is kept, which is SQLite's: the graph is a cache that can be built again.

docs/decisions/search-index.md says why usearch, and with which settings.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime  # noqa: F401  (loaded after usearch 2.26, it ends the process)
import structlog
from numpy.typing import NDArray
from usearch.index import Index

__all__ = ["ADD_AT_ONCE", "DEFAULT_GRAPH", "GraphSettings", "NearestIndex"]

log = structlog.get_logger(__name__)

# usearch holds Python's lock while it adds: so many faces at once keep all else waiting 10 ms.
ADD_AT_ONCE: Final = 16
# Key of the vector that overwrites removed ones.
_ERASER: Final = 2**63
_SAMPLE: Final = 64
_TOLERANCE: Final = 2e-3  # of half floats


@dataclass(frozen=True)
class GraphSettings:
    """Links of a face, and candidates looked at while adding one and while searching, at least.

    More of any finds more and takes longer; `benchmarks.search` says how much.
    """

    links: int = 24
    add_width: int = 128
    search_width: int = 2048


DEFAULT_GRAPH: Final = GraphSettings()


class NearestIndex:
    """Nearest embeddings by cosine, approximately. Safe to use from several threads.

    Keys are the cursors of results; they have to be added in rising order.
    """

    def __init__(self, dimensions: int, settings: GraphSettings = DEFAULT_GRAPH) -> None:
        self._lock = threading.Lock()
        self._settings = settings
        self._graph = Index(
            ndim=dimensions,
            metric="ip",
            dtype="f16",
            connectivity=settings.links,
            expansion_add=settings.add_width,
        )
        self.covered = 0
        """The highest cursor that was ever added: all above it are for the caller to compare."""

    def __len__(self) -> int:
        return len(self._graph)

    @property
    def bytes_used(self) -> int:
        """Memory of the graph, in bytes."""
        return int(self._graph.memory_usage)

    def add(self, cursors: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Adds faces [n], float32 [n, D]; more than `ADD_AT_ONCE` keep others waiting long."""
        with self._lock:
            self._graph.add(cursors.astype(np.uint64), embeddings, threads=1)
            self.covered = int(cursors[-1])

    def remove(self, cursors: NDArray[np.int64]) -> None:
        """Takes faces out, and overwrites their embeddings; those not there are ignored."""
        with self._lock:
            keys = cursors.astype(np.uint64)
            keys = keys[np.asarray(self._graph.contains(keys), bool)] if len(keys) else keys
            if not len(keys):
                return
            self._graph.remove(keys, threads=1)
            # A removed vector stays where it was until its place is taken: take it.
            erasers = np.arange(_ERASER, _ERASER + len(keys), dtype=np.uint64)
            blank = np.zeros((len(keys), self._graph.ndim), np.float32)
            blank[:, 0] = 1.0
            self._graph.add(erasers, blank, threads=1)
            self._graph.remove(erasers, threads=1)

    def search(self, example: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Cursors of about the `count` nearest faces, nearest first."""
        with self._lock:
            if not len(self._graph):
                return np.empty(0, np.int64)
            width = max(self._settings.search_width, 2 * count)
            self._graph.expansion_search = width  # type: ignore[misc]  # it has a setter
            found = self._graph.search(example, min(count, len(self._graph)), threads=1)
            return np.asarray(found.keys).astype(np.int64)

    def save(self, path: Path) -> None:
        """Writes the graph, all or nothing."""
        draft = path.with_name(path.name + ".part")
        with self._lock:
            self._graph.save(os.fspath(draft))
        draft.chmod(0o600)
        os.replace(draft, path)

    @staticmethod
    def load(
        path: Path,
        cursors: NDArray[np.int64],
        embeddings: NDArray[np.float32],
        settings: GraphSettings = DEFAULT_GRAPH,
    ) -> NearestIndex | None:
        """Reads what `save` wrote, if it is of these faces; None when it has to be built again.

        `cursors` int64 [N], rising, and `embeddings` float32 [N, D] are all faces that are kept.
        Newer ones than the graph knows may be among them; all others must be the same.
        """
        index = NearestIndex(embeddings.shape[1], settings)
        try:
            index._graph.load(os.fspath(path))
            keys = np.sort(np.asarray(index._graph.keys).astype(np.int64))
        except Exception as error:
            # A cache that cannot be read is one that is not there, whatever usearch makes of it.
            log.warning("likeness index not readable, building it again", reason=str(error))
            return None
        if index._graph.ndim != embeddings.shape[1] or not len(keys):
            return None
        index.covered = int(keys[-1])
        known = np.searchsorted(cursors, index.covered, side="right")
        if not np.array_equal(cursors[:known], keys):
            log.warning("likeness index is stale, building it again")
            return None
        sample = np.unique(np.linspace(0, known - 1, _SAMPLE).astype(np.int64))
        kept = np.asarray(index._graph.get(keys[sample].astype(np.uint64)), np.float32)
        if np.abs(kept - embeddings[sample]).max() > _TOLERANCE:
            log.warning("likeness index is of other faces, building it again")
            return None
        return index

