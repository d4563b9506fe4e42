"""Batches for training the codec: real faces with teacher targets, synthetic faces with latents.

What belongs here: caches derived from the face sets and the generator, and their sampling.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfic.networks.prior import StylePrior
from training.data import (
    Geometry,
    cache_dir,
    degrade_capture,
    picture_array,
    read_index,
    recolour,
)
from training.mesh_points import FLIP_68
from training.teachers import Faceres


def to_tensor(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [N, S, S, 3] -> float32 [N, 3, S, S] in [-1, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1.0)


def resize(x: Tensor, size: int) -> Tensor:
    """Area-average [N, 3, S, S] down to `size`."""
    if x.shape[2] == size:
        return x
    if x.shape[2] % size == 0:  # the same, faster
        return torch.nn.functional.avg_pool2d(x, x.shape[2] // size)
    return torch.nn.functional.interpolate(x, size=size, mode="area")


def sample_styles(
    w: npt.NDArray[np.float32], n: int, rng: np.random.Generator, styles: int = 16
) -> npt.NDArray[np.float32]:
    """n random style stacks [n, styles, D]: truncation 0.6..1, half of them mixed at one cut."""
    mean = w.mean(axis=0)
    first = w[rng.integers(len(w), size=n)]
    second = w[rng.integers(len(w), size=n)]
    psi = rng.uniform(0.6, 1.0, (n, 1)).astype(np.float32)
    one = np.repeat((mean + psi * (first - mean))[:, None], styles, axis=1)
    other = np.repeat((mean + psi * (second - mean))[:, None], styles, axis=1)
    cut = np.where(rng.random(n) < 0.5, rng.integers(3, styles - 2, n), styles)
    mask = np.arange(styles)[None, :] >= cut[:, None]
    return np.where(mask[:, :, None], other, one).astype(np.float32)


@torch.no_grad()
def render(
    generator: StylePrior, styles: npt.NDArray[np.float32], batch: int = 4
) -> npt.NDArray[np.uint8]:
    """Pictures of style stacks [n, num_styles, D], uint8 [n, 256, 256, 3].

    Rendered in full and averaged down: the colours of a preview follow the upper styles less well.
    """
    pictures = np.empty((len(styles), 256, 256, 3), np.uint8)
    for start in range(0, len(styles), batch):
        image = generator(torch.from_numpy(styles[start : start + batch]))  # [n, 3, S, S]
        if generator.resolution > 256:
            image = torch.nn.functional.avg_pool2d(image, generator.resolution // 256)
        elif generator.resolution < 256:
            image = torch.nn.functional.interpolate(image, size=256, mode="bicubic")
        small = image.clamp(-1, 1).add(1).mul(127.5).round().permute(0, 2, 3, 1)
        pictures[start : start + batch] = small.to(torch.uint8).numpy()
    return pictures


def synthetic_set(
    generator: StylePrior, count: int, seed: int = 7
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """`count` synthetic pictures of the built-in generator and their styles, cached."""
    folder = cache_dir() / "synthetic"
    folder.mkdir(exist_ok=True)
    pictures_path = folder / f"pictures-{count}-{seed}.npy"
    styles_path = folder / f"styles-{count}-{seed}.npy"
    if not (pictures_path.exists() and styles_path.exists()):
        w = np.load(cache_dir() / "generator" / "w_samples.npy")
        styles = sample_styles(w, count, np.random.default_rng(seed))
        np.save(styles_path, styles)
        np.save(pictures_path, render(generator, styles))
    return np.load(pictures_path), np.load(styles_path)


@torch.no_grad()
def identity_of(
    pictures: npt.NDArray[np.uint8], faceres_path: Path
) -> dict[str, npt.NDArray[np.float32]]:
    """faceres embedding (unit) [N, 1024], age [N] and P(male) [N] of uint8 [N, S, S, 3]."""
    teacher = Faceres.load(faceres_path, size=224)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(pictures), 16):
        parts.append(teacher(to_tensor(np.array(pictures[start : start + 16]))))
    embedding, age, gender = (torch.cat(column) for column in zip(*parts, strict=True))
    embedding = torch.nn.functional.normalize(embedding, dim=1)
    return {
        "embedding": embedding.numpy(),
        "age": age.flatten().numpy(),
        "gender": gender.flatten().numpy(),
    }


def identity_targets(split: str, faceres_path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """faceres embedding (unit), age and P(male) of each picture of a split, cached."""
    path = cache_dir() / f"identity-{split}.npz"
    if not path.exists():
        pictures = picture_array(read_index(split), 256, split)
        np.savez(path, **identity_of(pictures, faceres_path))
    return dict(np.load(path))


@dataclass(frozen=True)
class Batch:
    """Faces of one step: their rows, what the encoder sees, what it should come to, landmarks.

    Pictures are float32 [n, 3, S, S] in [-1, 1], landmarks [n, 68, 2] in 0..1 (0: unknown).
    """

    index: npt.NDArray[np.int64]
    seen: Tensor
    target: Tensor
    landmarks: Tensor


class Batches:
    """Endless batches of real faces, augmented by a background thread.

    `pictures`: uint8 [M, S, S, 3], at least `batch` of them; `landmarks`: float32 [M, 68, 2];
    `degraded`: share of the faces that a poor camera may have taken.
    """

    def __init__(
        self,
        pictures: npt.NDArray[np.uint8],
        landmarks: npt.NDArray[np.float32],
        batch: int,
        seed: int,
        degraded: float = 1.0,
    ) -> None:
        if len(pictures) < batch:
            raise ValueError(f"{len(pictures)} pictures are too few for batches of {batch}")
        self.pictures = pictures
        self.landmarks = landmarks
        self.batch = batch
        self.degraded = degraded
        self.rng = np.random.default_rng(seed)
        self.queue: queue.Queue[Batch] = queue.Queue(4)
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self) -> None:
        rng, size = self.rng, self.pictures.shape[1]
        while True:
            order = rng.permutation(len(self.pictures))
            for start in range(0, len(order) - self.batch + 1, self.batch):
                index = order[start : start + self.batch]
                moves = [Geometry.draw(size, rng) for _ in index]
                target = [
                    recolour(move.apply(self.pictures[i]), rng)
                    for i, move in zip(index, moves, strict=True)
                ]
                seen = [
                    degrade_capture(t, rng) if rng.random() < self.degraded else t for t in target
                ]
                points = [
                    move.move(self.landmarks[i], FLIP_68) if self.landmarks[i].any()
                    else self.landmarks[i]
                    for i, move in zip(index, moves, strict=True)
                ]
                self.queue.put(
                    Batch(
                        index,
                        to_tensor(np.stack(seen)),
                        to_tensor(np.stack(target)),
                        torch.from_numpy(np.stack(points)),
                    )
                )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.queue.get()
