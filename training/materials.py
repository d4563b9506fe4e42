"""What a training run works on: the prior, pictures of faces with teachers' answers, teachers.

Belongs here: putting it together for the codec that ships. `training.make_bundle` does the same for
an integrator's checkpoint and pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfic.networks.codec import CodecShape
from sfic.networks.generator import Generator
from sfic.networks.prior import StylePrior
from training.codec_data import identity_of, synthetic_set
from training.data import cache_dir, picture_array, read_index
from training.teachers import Faceres

__all__ = ["Materials", "shipped_materials"]


@dataclass(frozen=True)
class Materials:
    """One run's inputs.

    `w`: outputs of the mapping network, float32 [n, style_dim]. `pictures`: aligned faces, uint8
    [M, 256, 256, 3]; `targets`: answers for them, at least `embedding` float32 [M, E] (unit), and
    `landmarks68` float32 [M, 68, 2] (0: no face found), and `age` (years), `gender` (probability of
    male) and `smile` (probability) [M] where a teacher gave them.
    `fake_pictures` uint8 [n, 256, 256, 3] are renderings of `fake_styles` float32 [n, styles, dim],
    `fake_embeddings` [n, E] the identity network's of them (unit; None: there is no such network).
    `teacher`: network of the identity and perceptual losses, or None to train without them.
    `backbone`: weights that the encoder starts from, or None for random ones.
    """

    generator: StylePrior
    shape: CodecShape
    w: npt.NDArray[np.float32]
    pictures: npt.NDArray[np.uint8]
    targets: dict[str, npt.NDArray[np.float32]]
    fake_pictures: npt.NDArray[np.uint8]
    fake_styles: npt.NDArray[np.float32]
    fake_embeddings: npt.NDArray[np.float32] | None
    teacher: Faceres | None
    backbone: Path | None


def shipped_materials(config: dict[str, Any]) -> Materials:
    """What the shipped codec is trained on, from the caches of earlier steps."""
    teachers = cache_dir() / "teachers"
    faceres = teachers / "faceres.safetensors"
    generator = Generator.load(cache_dir() / "generator" / "generator.safetensors")
    fake_pictures, fake_styles = synthetic_set(generator, config["synthetic"])
    return Materials(
        generator=generator,
        shape=CodecShape(),
        w=np.load(cache_dir() / "generator" / "w_samples.npy"),
        pictures=picture_array(read_index("train"), 256, "train"),
        targets=dict(np.load(teachers / "train_targets.npz")),
        fake_pictures=fake_pictures,
        fake_styles=fake_styles,
        fake_embeddings=identity_of(fake_pictures, faceres)["embedding"],
        teacher=Faceres.load(faceres, size=112),
        backbone=teachers / "efficientnet_lite0.safetensors",
    )
