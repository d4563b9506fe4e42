"""Reading a trained codec, and what its symbols are on a set of faces.

What belongs here: the steps that entropy model, heads and export share. Training is elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfic.entropy.model import PARTS
from sfic.networks.codec import CORRECTED, LAYERS, CodecShape, FaceCodec
from sfic.networks.generator import Generator
from sfic.networks.prior import StylePrior
from training.codec_data import resize, to_tensor
from training.data import cache_dir
from training.teachers import Faceres

RATE_COUNT = 9
CODED = tuple(part for parts in PARTS.values() for part in parts)  # in the order of coding
RATE_POSITIONS = np.linspace(0.0, 1.0, RATE_COUNT)


def widened(state: dict[str, Tensor], codec: FaceCodec) -> dict[str, Tensor]:
    """`state` of an older or narrower codec: what is new stays as `codec` has it."""
    own = {name: value.clone() for name, value in codec.state_dict().items()}
    for name, value in state.items():
        if name in own:
            own[name][tuple(slice(0, side) for side in value.shape)] = value
    return own


def load_codec(checkpoint: Path) -> FaceCodec:
    """The averaged weights of a checkpoint, frozen."""
    state = torch.load(checkpoint, weights_only=True)
    codec = FaceCodec(CodecShape(**state.get("shape", {})))
    codec.load_state_dict(widened(state["average"], codec))
    codec.requires_grad_(False).eval()
    return codec


def load_generator() -> Generator:
    """The generator that training uses."""
    return Generator.load(cache_dir() / "generator" / "generator.safetensors")


def identity_network() -> Faceres:
    """The network whose embedding the basic layer of the shipped codec carries."""
    return Faceres.load(cache_dir() / "teachers" / "faceres.safetensors", size=224)


def gain_tables(codec: FaceCodec) -> dict[str, npt.NDArray[np.float32]]:
    """Gain of each part at the nine rates, float32 [9, n]."""
    t = torch.tensor(RATE_POSITIONS, dtype=torch.float32)
    gains = {
        name: codec.gains[name](t).detach().numpy().astype(np.float32)
        for name in (*LAYERS, "spatial")
    }
    both = gains.pop("spatial")
    gains["coarse"], gains["fine"] = np.split(both, [codec.shape.coarse_channels], axis=1)
    return gains


@dataclass
class SymbolSet:
    """Symbols of many encodings: parts int16 [M, ...]; rate 1..9, and picture, int64 [M]."""

    parts: dict[str, npt.NDArray[np.int16]]
    rate: npt.NDArray[np.int64]
    picture: npt.NDArray[np.int64]

    def save(self, path: Path, source: str) -> None:
        """`source`: what they were made from, as `load` has to name it."""
        np.savez(path, rate=self.rate, picture=self.picture, source=source, **self.parts)

    @classmethod
    def load(cls, path: Path, source: str) -> SymbolSet | None:
        """What was saved; None when there is nothing, or of another source or other parts."""
        if not path.exists():
            return None
        with np.load(path) as file:
            if not {"source", *CODED} <= set(file.files) or str(file["source"]) != source:
                return None
            parts = {name: file[name] for name in CODED}
            return cls(parts, file["rate"], file["picture"])


@torch.no_grad()
def collect_symbols(
    codec: FaceCodec,
    generator: StylePrior,
    pictures: npt.NDArray[np.uint8],
    embeddings: npt.NDArray[np.float32] | None,
    size: int,
    rates_each: int,
    seed: int = 3,
    flips: bool = True,
    quick: bool = False,
    batch: int = 16,
) -> SymbolSet:
    """Encode each picture (and its mirror image) at `rates_each` random rates.

    `embeddings`: the identity network's, [M, E], for a codec with one; `size`: side of what the
    trunk sees. `quick`: all but the trunk in bfloat16, as in training, for symbols to learn from.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[npt.NDArray[np.int16]]] = {name: [] for name in CODED}
    rates, indices = [], []
    for start in range(0, len(pictures), batch):
        crop = to_tensor(np.array(pictures[start : start + batch]))
        rows = None if embeddings is None else torch.from_numpy(embeddings[start : start + batch])
        variants = (crop, crop.flip(3)) if flips else (crop,)
        for seen in variants:
            z = codec.analyse(resize(seen, size), rows)
            small = resize(seen, codec.shape.picture)
            for _ in range(rates_each):
                rate = rng.integers(1, RATE_COUNT + 1, len(seen))
                t = torch.from_numpy(RATE_POSITIONS[rate - 1]).float()
                with torch.autocast("cpu", torch.bfloat16, enabled=quick):
                    symbols = symbols_of(codec, generator, z, small, t)
                for name, value in symbols.items():
                    columns[name].append(value.float().numpy().astype(np.int16))
                rates.append(rate)
                indices.append(np.arange(start, start + len(seen)))
    parts = {name: np.concatenate(value) for name, value in columns.items()}
    return SymbolSet(parts, np.concatenate(rates), np.concatenate(indices))


def symbols_of(
    codec: FaceCodec, generator: StylePrior, z: dict[str, Tensor], crop: Tensor, t: Tensor
) -> dict[str, Tensor]:
    """Rounded symbols of all parts at rates t [N]."""
    symbols, latents = {}, {}
    for name in LAYERS:
        latents[name], symbols[name] = codec.through(name, z[name], t, noise=False)
    styles = codec.whitening.to_styles(codec.coefficients(latents)["enhanced"])
    features = generator.features(styles, CORRECTED)
    preview = generator.head(features, styles, CORRECTED).clamp(-1.2, 1.2)
    gain = codec.gains["spatial"](t)[:, :, None, None]
    code = codec.spatial_latents(crop, features, preview, gain)
    _, both = codec.through("spatial", code, t, noise=False)
    symbols["coarse"], symbols["fine"] = both.tensor_split((codec.shape.coarse_channels,), dim=1)
    return symbols
