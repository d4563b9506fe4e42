"""The codecs of a service: that of its own model bundle and, during a change, of a second one.

Belongs here: which codec a face is for. What a bundle is belongs to `sfic.bundle`, coding to
`sfic.codec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sfic.analysis import Analysis
from sfic.codec import Codec
from sfic.errors import BundleMismatch, SficError

__all__ = ["Codecs"]


class Codecs:
    """One codec or two. `own` is the one of what the service itself makes and compares."""

    def __init__(self, own: Codec, second: Codec | None = None) -> None:
        """A `second` of the same bundle as `own` counts for nothing."""
        self.own = own
        self._by_bundle = {own.model_bundle: own}
        if second is not None:
            self._by_bundle.setdefault(second.model_bundle, second)

    @classmethod
    def load(
        cls, bundle: Path | Codec | None, second: Path | None, *, provider: str, threads: int
    ) -> Codecs:
        """Open the bundles in two directories; None: the one that ships, and no second one.

        `bundle` may be a codec that is loaded already. Raises as `Codec.load` does.
        """
        own = bundle
        if not isinstance(own, Codec):
            own = Codec.load(own, provider=provider, threads=threads)
        if second is None:
            return cls(own)
        return cls(own, Codec.load(second, provider=provider, threads=threads))

    @property
    def bundles(self) -> tuple[str, ...]:
        """Names of the bundles, the own one first."""
        return tuple(self._by_bundle)

    def warm_up(self, part: Literal["encode", "decode", "analyze"]) -> None:
        """Load and run once what a part needs, of each codec."""
        for codec in self._by_bundle.values():
            codec.warm_up(part)

    def of(self, model_bundle: str) -> Codec:
        """The codec of a bundle, by its name. Raises `BundleMismatch` naming all bundles."""
        codec = self._by_bundle.get(model_bundle)
        if codec is None:
            raise BundleMismatch(
                f"the face was coded with model bundle {model_bundle or 'unknown'}, loaded:"
                f" {' and '.join(self.bundles)}; second_bundle takes one more",
                face_bundle=model_bundle,
                loaded_bundle=",".join(self.bundles),
            )
        return codec

    def analyze_batch(self, faces: Sequence[tuple[str, bytes]]) -> list[Analysis | SficError]:
        """As `Codec.analyze_batch`, for basic packets with the names of their bundles."""
        places: dict[str, list[int]] = {}
        for place, (model_bundle, _) in enumerate(faces):
            places.setdefault(model_bundle, []).append(place)
        results: dict[int, Analysis | SficError] = {}
        for model_bundle, mine in places.items():
            try:
                found = self.of(model_bundle).analyze_batch([faces[place][1] for place in mine])
            except BundleMismatch as error:
                results.update({place: error for place in mine})
            else:
                results.update(zip(mine, found, strict=True))
        return [results[place] for place in range(len(faces))]
