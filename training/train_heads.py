"""Train the machine-task heads on the basic layer's symbols of a trained codec.

    python -m training.train_heads --checkpoint ... --out heads.pt

Targets come from teachers (`training.teacher_cache`); labels of the face sets replace a teacher's
age and gender where they are known. Parsing and glasses come from CelebAMask-HQ's maps, and for
faces without one from `training.face_parser`. Open eyes and mouths are read off the face mesh.
Facial hair is labelled by eye (`training/labels/facial_hair.csv`).
Inputs are degraded as cameras degrade them, and every rate occurs, so that confidence and face
score learn when not to be sure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sfic.analysis import PARSING_CLASSES, PARSING_SIZE
from sfic.networks.codec import FaceCodec
from sfic.networks.heads import TaskHeads
from sfic.runtime import make_session
from training.codec_checkpoint import RATE_POSITIONS, identity_network, load_codec
from training.codec_data import resize, to_tensor
from training.data import (
    FaceRow,
    cache_dir,
    degrade_capture,
    picture_array,
    read_facial_hair,
    read_index,
)
from training.export import export_analysis
from training.mesh_points import FLIP_68, points_68
from training.teachers import Faceres

# What CelebAMask-HQ's maps are coloured with, in the order of PARSING_CLASSES.
PALETTE = np.array(
    [
        (0, 0, 0), (204, 0, 0), (76, 153, 0), (204, 204, 0), (51, 51, 255), (204, 0, 204),
        (0, 255, 255), (255, 204, 204), (102, 51, 0), (255, 0, 0), (102, 204, 0), (255, 255, 0),
        (0, 0, 153), (0, 0, 204), (255, 51, 153), (0, 204, 204), (0, 51, 0), (255, 153, 51),
        (0, 204, 0),
    ],
    np.int64,
)  # fmt: skip
GLASSES = PARSING_CLASSES.index("glasses")
UNKNOWN = 255
FLIP_PARSING = np.arange(256)
for left in (4, 6, 8):  # eyes, brows, ears
    FLIP_PARSING[[left, left + 1]] = left + 1, left


def read_parsing(path: Path, size: int = PARSING_SIZE) -> npt.NDArray[np.uint8]:
    """A coloured map as classes, uint8 [size, size]."""
    colours = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if colours is None:
        raise FileNotFoundError(path)
    small = cv2.resize(colours, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)[..., ::-1]
    distance = np.abs(small[:, :, None].astype(np.int64) - PALETTE).sum(axis=3)
    return np.asarray(distance.argmin(axis=2), np.uint8)


def parsing_maps(rows: Sequence[FaceRow]) -> Tensor:
    """Maps of the rows that have one, the others UNKNOWN: uint8 [M, 64, 64]."""
    maps = np.full((len(rows), PARSING_SIZE, PARSING_SIZE), UNKNOWN, np.uint8)
    for i, row in enumerate(rows):
        path = row.path.parent.parent / "celebahq512_masks" / f"{row.path.stem}.png"
        if row.set == "celebahq512" and path.is_file():
            maps[i] = read_parsing(path)
    return torch.from_numpy(maps)


def facial_hair_of(rows: Sequence[FaceRow], gender: npt.NDArray[np.float32]) -> Tensor:
    """Probabilities [M]; `gender` [M]: where surely female and not labelled, 0; else nan."""
    labels = read_facial_hair()
    values = [
        labels.get(row.fields["path"], 0.0 if male < 0.1 else float("nan"))
        for row, male in zip(rows, gender.tolist(), strict=True)
    ]
    return torch.tensor(values)


def openness(mesh: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """How open eyes and mouth of meshes [M, 468, 3] are, as probabilities [M]."""

    def ratio(upper: int, lower: int, one: int, other: int) -> npt.NDArray[np.float32]:
        height = np.linalg.norm(mesh[:, upper] - mesh[:, lower], axis=1)
        width = np.linalg.norm(mesh[:, one] - mesh[:, other], axis=1)
        return np.asarray(height / np.maximum(width, 1e-6), np.float32)

    eyes = (ratio(159, 145, 33, 133) + ratio(386, 374, 362, 263)) / 2
    mouth = ratio(13, 14, 78, 308)
    return (
        torch.sigmoid(torch.from_numpy((eyes - 0.16) / 0.03)),
        torch.sigmoid(torch.from_numpy((mouth - 0.08) / 0.03)),
    )


@dataclass
class Targets:
    """Teachers' answers for pictures, one row each; None where there was no teacher."""

    embedding: Tensor  # [M, D] unit
    age: Tensor | None  # [M] years / 50
    gender: Tensor | None  # [M] probability of male
    smile: Tensor | None  # [M] probability
    pose: Tensor  # [M, 3] degrees / 30
    landmarks: Tensor  # [M, 68, 2]
    known: Tensor  # [M] landmarks and pose are known
    expression: Tensor | None  # [M, 7] probabilities
    eyes_open: Tensor  # [M] probability
    mouth_open: Tensor  # [M] probability
    facial_hair: Tensor | None  # [M] probability; nan where nobody looked
    parsing: Tensor | None  # uint8 [M, 64, 64] classes; 255 where there is no map

    @classmethod
    def load(cls, split: str, projection: Tensor) -> Targets:
        """Read the teacher cache; `projection`: [1024, D] of the identity teacher."""
        rows = read_index(split)
        with np.load(cache_dir() / "teachers" / f"{split}_targets.npz") as file:
            t = {name: file[name] for name in file.files}
        identity = dict(np.load(cache_dir() / f"identity-{split}.npz"))
        labelled = cache_dir() / "teachers" / f"{split}_parsing.npz"  # of training.face_parser
        parsing = parsing_maps(rows)
        if labelled.is_file():
            with np.load(labelled) as file:
                parsing = torch.from_numpy(file["maps"])
        embedding = F.normalize(torch.from_numpy(identity["embedding"]) @ projection, dim=1)
        age, gender = identity["age"].copy(), identity["gender"].copy()
        for i, row in enumerate(rows):
            if row.fields["gender"] in ("male", "female"):
                gender[i] = float(row.fields["gender"] == "male")
            if row.fields["age"] not in ("", "NA"):
                age[i] = float(row.fields["age"])
        return cls(
            embedding,
            torch.from_numpy(age).float() / 50,
            torch.from_numpy(gender).float(),
            torch.from_numpy(t["smile"]).float(),
            torch.from_numpy(t["pose"]).float() / 30,
            torch.from_numpy(points_68(t["mesh"])),
            torch.from_numpy(t["mesh_found"]).float(),
            torch.from_numpy(t["expressions"]).float(),
            *openness(t["mesh"]),
            facial_hair_of(rows, gender),
            parsing,
        )

    @classmethod
    def of(cls, answers: Mapping[str, npt.NDArray[np.float32]], projection: Tensor) -> Targets:
        """From arrays named as in `training.teacher_cache`; age, gender and smile may lack."""

        def column(name: str, unit: float = 1.0) -> Tensor | None:
            return torch.from_numpy(answers[name]).float() / unit if name in answers else None

        return cls(
            F.normalize(torch.from_numpy(answers["embedding"]) @ projection, dim=1),
            column("age", 50.0),
            column("gender"),
            column("smile"),
            torch.from_numpy(answers["pose"]).float() / 30,
            torch.from_numpy(points_68(answers["mesh"])),
            torch.from_numpy(answers["mesh_found"]).float(),
            column("expressions"),
            *openness(answers["mesh"]),
            None,
            None,
        )

    def at(self, index: npt.NDArray[np.int64], flipped: npt.NDArray[np.bool_]) -> Targets:
        """Rows of `index`, mirrored where `flipped`."""
        i = torch.from_numpy(index)
        f = torch.from_numpy(flipped)
        mirrored = self.landmarks[i][:, torch.from_numpy(FLIP_68)].clone()
        mirrored[..., 0] = 1 - mirrored[..., 0]
        landmarks = torch.where(f[:, None, None], mirrored, self.landmarks[i])
        sign = torch.tensor([-1.0, 1.0, -1.0])
        pose = torch.where(f[:, None], self.pose[i] * sign, self.pose[i])
        age, gender, smile = (
            None if column is None else column[i]
            for column in (self.age, self.gender, self.smile)
        )
        parsing = None
        if self.parsing is not None:
            maps = self.parsing[i]
            turned = torch.from_numpy(FLIP_PARSING)[maps.flip(2).long()].to(torch.uint8)
            parsing = torch.where(f[:, None, None], turned, maps)
        expression, facial_hair = (
            None if column is None else column[i] for column in (self.expression, self.facial_hair)
        )
        return Targets(
            self.embedding[i], age, gender, smile, pose, landmarks, self.known[i],
            expression, self.eyes_open[i], self.mouth_open[i], facial_hair, parsing,
        )  # fmt: skip


class Analyser:
    """The encoder's half that heads need, as it is served: several times faster than in torch."""

    def __init__(self, codec: FaceCodec, identity: Faceres | None, size: int) -> None:
        """`identity`: the identity network of a codec with one; `size`: of what the trunk sees."""
        with tempfile.TemporaryDirectory() as folder:
            self.size = export_analysis(codec, identity, size, Path(folder))
            path = Path(folder) / "analysis.onnx"
            self._session = make_session(path, "cpu", torch.get_num_threads(), arena=True)

    def basic(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        """Unquantised basic latents [M, n] of pictures, uint8 [M, S, S, 3]."""
        crop = resize(to_tensor(pictures), self.size).numpy()
        return torch.from_numpy(self._session.run(["basic"], {"crop": crop})[0])


def basic_latents(
    analyser: Analyser, pictures: npt.NDArray[np.uint8], seed: int, flip: bool, degrade: bool
) -> Tensor:
    """Unquantised basic latents [M, n] of all pictures, mirrored and degraded if asked."""
    rng = np.random.default_rng(seed)
    out = []
    for start in range(0, len(pictures), 32):
        part = np.array(pictures[start : start + 32])
        if flip:
            part = np.ascontiguousarray(part[:, :, ::-1])
        if degrade:
            part = np.stack([degrade_capture(p, rng) for p in part])
            if rng.random() < 0.25:  # far worse than any training input: what the score is for
                small = int(rng.integers(12, 48))
                part = np.stack(
                    [
                        cv2.resize(cv2.resize(p, (small, small), interpolation=cv2.INTER_AREA),
                                   p.shape[:2], interpolation=cv2.INTER_CUBIC)
                        for p in part
                    ]
                )
        out.append(analyser.basic(part))
    return torch.cat(out)


def quantised(codec: FaceCodec, z: Tensor, rng: np.random.Generator) -> Tensor:
    """Decoded latents at random rates."""
    t = torch.from_numpy(RATE_POSITIONS[rng.integers(0, 9, len(z))]).float()
    gain = codec.gains["basic"](t)
    return torch.round(z * gain) / gain


def laplace(error: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log likelihood under a Laplace law (without constant)."""
    log_scale = log_scale.clamp(-8, 4)
    return error * torch.exp(-log_scale) + log_scale


# Small parts count more than their area, so that the mean over classes is not that of the large.
CLASS_WEIGHTS = torch.tensor(
    [1, 1, 1.5, 3, 4, 4, 3, 3, 3, 3, 3, 3, 3, 1, 2, 4, 5, 1.2, 1.2], dtype=torch.float32
)


def any_of_four(maps: Tensor) -> Tensor:
    """Maps [N, 64, 64] on a grid half as fine: of each 2x2 places one, drawn anew each time.

    Over the steps a cell is taught what its four places are, at a quarter of their cost.
    """
    row, column = torch.randint(0, 2, (2,)).tolist()
    return maps[:, row::2, column::2].long()


def losses(heads: TaskHeads, basic: Tensor, want: Targets) -> dict[str, Tensor]:
    """One loss for each task, from decoded basic latents [N, n]."""
    out = heads.named(basic)
    cosine = (out["embedding"] * want.embedding).sum(dim=1)  # [N]
    distance = (1 - cosine).detach().clamp_min(1e-3).log()
    points = (out["landmarks"] - want.landmarks).abs().mean(dim=(1, 2))
    angle = (out["pose"][:, :3] - want.pose).abs().mean(dim=1)
    trust = ((cosine.detach() - 0.4) / 0.5).clamp(0, 1)
    parts = {
        "identity": 4 * (1 - cosine).mean(),
        "identity_error": 0.2 * (out["identity_error"] - distance).abs().mean(),
        "pose": 0.3 * (laplace(angle, out["pose"][:, 3]) * want.known).mean(),
        "landmarks": (
            (20 * points + 0.1 * laplace(points.detach(), out["landmarks_error"])) * want.known
        ).mean(),
        "score": 0.3 * F.binary_cross_entropy_with_logits(out["score"], trust),
    }
    if want.age is not None:
        age, log_error = out["age"].unbind(dim=1)
        parts["age"] = 0.3 * laplace((age - want.age).abs(), log_error).mean()
    for name in ("eyes_open", "mouth_open"):
        each = F.binary_cross_entropy_with_logits(out[name], getattr(want, name), reduction="none")
        parts[name] = 0.5 * (each * want.known).mean()
    if want.expression is not None:
        parts["expression"] = -0.5 * (
            (want.expression * F.log_softmax(out["expression"], dim=1)).sum(dim=1).mean()
        )
    if want.parsing is not None:
        mapped = want.parsing[:, 0, 0] != UNKNOWN
        if mapped.any():
            maps = want.parsing[mapped]
            parts["parsing"] = F.cross_entropy(
                heads.parsing_logits(basic[mapped]), any_of_four(maps), weight=CLASS_WEIGHTS
            )
            worn = ((maps == GLASSES).flatten(1).sum(dim=1) > 8).float()
            parts["glasses"] = F.binary_cross_entropy_with_logits(out["glasses"][mapped], worn)
    if want.facial_hair is not None:
        seen = want.facial_hair.isfinite()
        if seen.any():
            parts["facial_hair"] = F.binary_cross_entropy_with_logits(
                out["facial_hair"][seen], want.facial_hair[seen].clamp(0.02, 0.98)
            )
    for name, probability in (("gender", want.gender), ("smile", want.smile)):
        if probability is not None:
            parts[name] = F.binary_cross_entropy_with_logits(
                out[name], probability.clamp(0.02, 0.98)
            )
    return parts


def train(
    codec: FaceCodec,
    identity: Faceres | None,
    pictures: npt.NDArray[np.uint8],
    targets: Targets,
    size: int,
    steps: int,
    seed: int = 9,
    report: Callable[[dict[str, Any]], None] = lambda line: print(json.dumps(line), flush=True),
) -> TaskHeads:
    """Fit the heads to `targets` of `pictures`, uint8 [M, S, S, 3].

    `identity`: the identity network of a codec with one; `size`: side of what the trunk sees.
    A task without targets stays untrained and answers with confidence 0. `report` is given a line
    each 500 steps.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    variants = [(flip, degrade) for degrade in (False, True) for flip in (False, True)]
    begin = time.monotonic()
    analyser = Analyser(codec, identity, size)
    z = [
        basic_latents(analyser, pictures, seed + i, *variant) for i, variant in enumerate(variants)
    ]
    report({"step": 0, "s": round(time.monotonic() - begin)})
    heads = TaskHeads(codec.shape.basic, targets.embedding.shape[1])
    found = targets.known > 0
    heads.mean_landmarks.copy_(targets.landmarks[found].mean(dim=0))
    optimiser = torch.optim.AdamW(heads.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    heads.train()
    for step in range(steps):
        index = rng.integers(0, len(pictures), 128)
        which = rng.integers(0, len(variants), 128)
        picked = torch.stack([z[w][i] for w, i in zip(which, index, strict=True)])
        want = targets.at(index, np.array([variants[w][0] for w in which]))
        parts = losses(heads, quantised(codec, picked, rng), want)
        optimiser.zero_grad()
        sum(parts.values(), torch.zeros(())).backward()
        optimiser.step()
        schedule.step()
        if step % 500 == 499:
            line = {k: round(float(v.detach()), 4) for k, v in parts.items()}
            report({"step": step + 1, "s": round(time.monotonic() - begin), **line})
    heads.eval()
    for name in ("age", "gender", "smile", "expression", "facial_hair", "parsing"):
        if getattr(targets, name) is None:
            heads.silence(name)
    if targets.parsing is None:
        heads.silence("glasses")
    return heads


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--input", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=9)
    args = parser.parse_args()
    codec = load_codec(args.checkpoint)
    projection = torch.load(args.checkpoint, weights_only=True)["projection"]
    targets = Targets.load("train", projection)
    pictures = picture_array(read_index("train"), 256, "train")
    identity = identity_network() if codec.shape.identity else None
    train(codec, identity, pictures, targets, args.input, args.steps, args.seed).save(args.out)


if __name__ == "__main__":
    main()
