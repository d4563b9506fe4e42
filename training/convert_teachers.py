"""Convert the teachers' published weights to safetensors, where `training.teachers` loads them.

    python -m training.convert_teachers [--to DIR]      # default: SFIC_CACHE/teachers

Writes faceres, efficientnet_lite0, expression and age_gender `.safetensors` and prints their
hashes. Belongs here: that conversion only. No teacher is shipped: all are needed in training alone.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfic.networks.efficientnet import from_published
from training.data import cache_dir
from training.faceapi import AgeGenderNet, DenseFaceNet, load_faceapi, read_faceapi
from training.packages import EFFICIENTNET, FACE_API, HUMAN
from training.teachers import faceres_state
from training.tfjs import read_graph_model


def states() -> dict[str, dict[str, Tensor]]:
    """State dictionaries of all teachers, by name."""
    models = FACE_API.fetch() / "package" / "model"
    checkpoint = next(EFFICIENTNET.fetch().rglob("*.pth"))
    expression = load_faceapi(DenseFaceNet(7), read_faceapi(models, "face_expression_model"))
    age_gender = load_faceapi(AgeGenderNet(), read_faceapi(models, "age_gender_model"))
    return {
        "faceres": faceres_state(
            read_graph_model(HUMAN.fetch() / "package" / "models" / "faceres.json")
        ),
        "efficientnet_lite0": from_published(torch.load(checkpoint, weights_only=True)),
        "expression": expression.state_dict(),
        "age_gender": age_gender.state_dict(),
    }


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, default=cache_dir() / "teachers")
    folder: Path = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in states().items():
        file = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, file)
        print(f"{file.name} {file.stat().st_size} {hashlib.sha256(file.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
