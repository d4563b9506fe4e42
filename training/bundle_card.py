"""The card of an integrator's model bundle: what it was made of, and the figures at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.face_targets import MESH_SHAPE

__all__ = ["card"]

SHAPES_ONLY = "The embedding tells face shapes apart. It is no face recognition.\n\n"


def card(
    name: str, meta: Mapping[str, Any], config: Mapping[str, Any], facts: Mapping[str, Any]
) -> str:
    """Markdown for the bundle `name` with the settings `meta`, trained by `config`.

    `facts`: `pictures`, `held_out` (counts), `difference` (served against torch), `bytes_by_rate`
    (of each part).
    """
    generator = meta["generator"]
    tasks = "\n".join(
        f"| {task} | {teacher or 'none: answers with confidence 0'} |"
        for task, teacher in meta["teachers"].items()
    )
    spent = "\n".join(
        f"| {part} | {', '.join(map(str, values))} |"
        for part, values in facts["bytes_by_rate"].items()
    )
    caution = SHAPES_ONLY if meta["teachers"]["embedding"] == MESH_SHAPE else ""
    return f"""# Model bundle {name}

| | |
|---|---|
| generator | {generator["kind"]}, {generator["resolution"]} px, {meta["styles"]} styles |
| its weights | SHA-256 {", ".join(generator["sha256"])} |
| licence | that of the generator's weights and of the pictures: fill in |
| pictures | {facts["pictures"]} aligned faces, {facts["held_out"]} held out of the entropy model |
| encoder starts from | {config.get("backbone", "imagenet")} weights |
| training | {config["steps"]} steps of {config["batch"]} faces and {config["batch_synthetic"]} \
synthetic ones |
| served against torch | largest difference {facts["difference"]:.4f} in pictures of -1 .. 1 |

Teachers of the machine tasks:

| task | teacher |
|---|---|
{tasks}

{caution}Mean bytes of the pictures held out at rates 1 to 9 (0: not drawn), without headers:

| part | bytes |
|---|---|
{spent}
"""
