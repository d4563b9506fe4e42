"""The machine-task heads: from decoded basic latents to results, without pixels or generator."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfic.analysis import EXPRESSIONS, HEADS, PARSING_CLASSES, PARSING_SIZE

LANDMARKS = 68
PARSING_GRID = 32  # what the network decides; the map is twice as fine, by interpolation
UNKNOWN_LOG_ERROR = 8.0  # an expected error of thousands: no confidence in any answer


class TaskHeads(nn.Module):
    """One small network for all tasks; `sfic.analysis.read_heads` reads its outputs."""

    mean_landmarks: Tensor
    finer: Tensor

    # Columns of the attributes of each task that may have had no teacher.
    COLUMNS: ClassVar[dict[str, tuple[int, ...]]] = {
        "age": (0, 1),
        "gender": (2,),
        "smile": (3,),
        "expression": tuple(range(5, 5 + len(EXPRESSIONS))),
        "glasses": (5 + len(EXPRESSIONS),),
        "facial_hair": (8 + len(EXPRESSIONS),),
    }

    def __init__(self, inputs: int, embedding: int = 128, hidden: int = 384) -> None:
        super().__init__()
        self.sizes = {"inputs": inputs, "embedding": embedding, "hidden": hidden}
        self.identity = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(0.2), nn.Linear(hidden, embedding)
        )
        self.identity_linear = nn.Linear(inputs, embedding)
        self.trunk = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(0.2))
        self.attributes = nn.Linear(hidden, 5 + len(EXPRESSIONS) + 4)
        self.pose = nn.Linear(hidden, 4)
        self.landmarks = nn.Linear(hidden, 2 * LANDMARKS)
        self.landmarks_linear = nn.Linear(inputs, 2 * LANDMARKS, bias=False)
        self.errors = nn.Linear(hidden, 2)
        # Maps of faces are alike: a hundred numbers say how one differs from the mean map.
        self.parsing = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(0.2), nn.Linear(hidden, 96)
        )
        self.parsing_linear = nn.Linear(inputs, 96, bias=False)
        self.parts = nn.Linear(96, len(PARSING_CLASSES) * PARSING_GRID**2)
        nn.init.normal_(self.parts.weight, std=0.05)
        self.register_buffer("mean_landmarks", torch.full((LANDMARKS, 2), 0.5))
        rows = F.interpolate(torch.eye(PARSING_GRID)[None], size=PARSING_SIZE, mode="linear")
        self.register_buffer("finer", rows[0].T.contiguous(), persistent=False)  # [64, 32]

    def forward(self, basic: Tensor) -> tuple[Tensor, ...]:
        """basic: decoded latents [N, inputs] -> the outputs in the order of HEADS."""
        # Bilinear interpolation as products: twice as fast as the operator that is made for it.
        fine = self.finer @ (self.parsing_logits(basic) @ self.finer.T)  # [N, 19, 64, 64]
        return (*self.numbers(basic), fine.argmax(dim=1).to(torch.uint8))

    def numbers(self, basic: Tensor) -> tuple[Tensor, ...]:
        """As `forward`, without the last output, the parsing map."""
        h = self.trunk(basic)  # [N, hidden]
        a = self.attributes(h)  # [N, 16]
        n = 5 + len(EXPRESSIONS)
        errors = self.errors(h)  # [N, 2]
        offsets = 0.05 * (self.landmarks(h) + self.landmarks_linear(basic))
        return (
            F.normalize(self.identity(basic) + self.identity_linear(basic), dim=1),
            errors[:, 0],
            a[:, :2],
            a[:, 2],
            a[:, 3],
            self.pose(h),
            self.mean_landmarks + offsets.unflatten(1, (LANDMARKS, 2)),
            errors[:, 1],
            a[:, 4],
            a[:, 5:n],
            a[:, n],
            a[:, n + 1],
            a[:, n + 2],
            a[:, n + 3],
        )

    def parsing_logits(self, basic: Tensor) -> Tensor:
        """basic: [N, inputs] -> logits of the classes on the coarse grid [N, 19, 32, 32]."""
        grid = (len(PARSING_CLASSES), PARSING_GRID, PARSING_GRID)
        logits: Tensor = self.parts(self.parsing(basic) + self.parsing_linear(basic))
        return logits.unflatten(1, grid)

    @torch.no_grad()
    def silence(self, task: str) -> None:
        """Make an untrained task, one of `COLUMNS` or "parsing", answer with confidence 0."""
        if task == "parsing":
            self.parts.weight.zero_()
            self.parts.bias.zero_()
            return
        rows = list(self.COLUMNS[task])
        self.attributes.weight[rows] = 0.0
        self.attributes.bias[rows] = 0.0
        if task == "age":
            self.attributes.bias[1] = UNKNOWN_LOG_ERROR

    def named(self, basic: Tensor) -> dict[str, Tensor]:
        """The outputs by name, without the parsing map."""
        return dict(zip(HEADS[:-1], self.numbers(basic), strict=True))

    def save(self, path: Path) -> None:
        """Write weights and sizes."""
        torch.save({"sizes": self.sizes, "state": self.state_dict()}, path)

    @classmethod
    def load(cls, path: Path) -> TaskHeads:
        """Read what `save` wrote; frozen."""
        saved = torch.load(path, weights_only=True)
        heads = cls(**saved["sizes"])
        heads.load_state_dict(saved["state"])
        heads.requires_grad_(False).eval()
        return heads
