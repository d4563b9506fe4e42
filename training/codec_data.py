"""Batches for training the codec: real faces with teacher targets, synthetic faces with latents.

What belongs here: caches derived from the face sets and the generator, and their sampling.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfic.networks.generator import Generator
from training.data import augment_geometry, cache_dir, degrade_capture, picture_array, read_index
from training.teachers import Faceres


def to_tensor(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [N, S, S, 3] -> float32 [N, 3, S, S] in [-1, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1.0)


def sample_styles(
    w: npt.NDArray[np.float32], n: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """n random style stacks [n, 16, 512]: truncation 0.6..1, half of them mixed at one cut."""
    mean = w.mean(axis=0)
    first = w[rng.integers(len(w), size=n)]
    second = w[rng.integers(len(w), size=n)]
    psi = rng.uniform(0.6, 1.0, (n, 1)).astype(np.float32)
    styles = np.repeat((mean + psi * (first - mean))[:, None], 16, axis=1)
    other = np.repeat((mean + psi * (second - mean))[:, None], 16, axis=1)
    cut = np.where(rng.random(n) < 0.5, rng.integers(3, 14, n), 16)
    mask = np.arange(16)[None, :] >= cut[:, None]
    return np.where(mask[:, :, None], other, styles).astype(np.float32)


@torch.no_grad()
def synthetic_set(
    generator: Generator, count: int, seed: int = 7
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """`count` synthetic pictures uint8 [count, 256, 256, 3] and their styles, cached.

    Rendered in full and averaged down: the colours of a preview follow the upper styles less well.
    """
    folder = cache_dir() / "synthetic"
    folder.mkdir(exist_ok=True)
    pictures_path = folder / f"pictures-{count}-{seed}.npy"
    styles_path = folder / f"styles-{count}-{seed}.npy"
    if not (pictures_path.exists() and styles_path.exists()):
        w = np.load(cache_dir() / "generator" / "w_samples.npy")
        styles = sample_styles(w, count, np.random.default_rng(seed))
        pictures = np.empty((count, 256, 256, 3), np.uint8)
        for start in range(0, count, 4):
            image = generator(torch.from_numpy(styles[start : start + 4]))  # [4, 3, 1024, 1024]
            small = torch.nn.functional.avg_pool2d(image, 4).clamp(-1, 1)
            small = small.add(1).mul(127.5).round().permute(0, 2, 3, 1)
            pictures[start : start + 4] = small.to(torch.uint8).numpy()
        np.save(styles_path, styles)
        np.save(pictures_path, pictures)
    return np.load(pictures_path), np.load(styles_path)


@torch.no_grad()
def identity_targets(split: str, faceres_path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """faceres embedding (unit), age and P(male) of each picture of a split, cached."""
    path = cache_dir() / f"identity-{split}.npz"
    if not path.exists():
        pictures = picture_array(read_index(split), 256, split)
        teacher = Faceres.load(faceres_path, size=224)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(pictures), 16):
            parts.append(teacher(to_tensor(pictures[start : start + 16])))
        embedding, age, gender = (torch.cat(column) for column in zip(*parts, strict=True))
        embedding = torch.nn.functional.normalize(embedding, dim=1)
        np.savez(path, embedding=embedding, age=age.flatten(), gender=gender.flatten())
    return dict(np.load(path))


class Batches:
    """Endless batches of real faces, augmented by a background thread."""

    def __init__(self, size: int, batch: int, seed: int, clean: bool = False) -> None:
        self.pictures = picture_array(read_index("train"), 256, "train")
        self.size, self.batch, self.clean = size, batch, clean
        self.rng = np.random.default_rng(seed)
        self.queue: queue.Queue[tuple[npt.NDArray[np.int64], Tensor, Tensor]] = queue.Queue(4)
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self) -> None:
        while True:
            order = self.rng.permutation(len(self.pictures))
            for start in range(0, len(order) - self.batch + 1, self.batch):
                index = order[start : start + self.batch]
                target = [augment_geometry(self.pictures[i], self.rng) for i in index]
                seen = [degrade_capture(t, self.rng) for t in target]
                self.queue.put(
                    (index, to_tensor(np.stack(seen)), to_tensor(np.stack(target)))
                )

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.int64], Tensor, Tensor]]:
        while True:
            yield self.queue.get()
