"""Files of results: CSV and Parquet, one row for each face.

Belongs here: the columns and the two formats. Does not belong here: where results come from
(`sfic.client`) and the command (`sfic.cli.results`). Parquet needs the extra `export`.
"""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from sfic.analysis import PARSING_CLASSES
from sfic.client import FaceResult
from sfic.errors import InvalidInput, MissingExtra

__all__ = ["COLUMNS", "Format", "export_results"]

Format = Literal["csv", "parquet"]

# Rows of a Parquet row group; a reader takes a group at a time.
_GROUP: Final = 10_000
_ESTIMATES: Final = (
    "age", "gender", "smile", "glasses", "eyes_open", "mouth_open", "facial_hair", "yaw", "pitch",
    "roll",
)  # fmt: skip


def _estimates() -> dict[str, Callable[[FaceResult], Any]]:
    columns: dict[str, Callable[[FaceResult], Any]] = {}
    for name in _ESTIMATES:
        for part, suffix in (("value", ""), ("confidence", "_confidence")):

            def column(result: FaceResult, name: str = name, part: str = part) -> float | None:
                estimate = getattr(result, name)
                return None if estimate is None else float(getattr(estimate, part))

            columns[name + suffix] = column
    return columns


def _area(name: str) -> Callable[[FaceResult], Any]:
    return lambda result: result.areas.get(name)


COLUMNS: Final[dict[str, Callable[[FaceResult], Any]]] = {
    "cursor": lambda r: r.cursor,
    "face_id": lambda r: r.face_id,
    "camera_id": lambda r: r.camera_id,
    "edge_id": lambda r: r.edge_id,
    "captured": lambda r: r.captured,
    "analysed": lambda r: r.analysed,
    "known": lambda r: r.known,
    "face_score": lambda r: r.face_score,
    "brightened": lambda r: r.brightened,
    "visit_id": lambda r: r.visit_id or None,
    "model_bundle": lambda r: r.model_bundle,
    **_estimates(),
    "expression": lambda r: r.expression or None,
    "expression_confidence": lambda r: r.expression_confidence if r.known else None,
    **{f"area_{name.replace(' ', '_')}": _area(name) for name in PARSING_CLASSES},
}
"""Name of each column, and its value of a result; None: unknown."""


async def export_results(
    results: AsyncIterator[FaceResult], path: Path, format: Format, *, embeddings: bool = False
) -> int:
    """Writes results to a file as they come; returns how many. The file appears when it is whole.

    `embeddings`: also the identity as a list of floats, which only Parquet takes. Raises
    `InvalidInput` for embeddings in CSV, `MissingExtra` for Parquet without pyarrow.
    """
    if embeddings and format == "csv":
        raise InvalidInput("embeddings are exported to Parquet only")
    draft = path.with_name(path.name + ".part")
    try:
        if format == "csv":
            count = await _write_csv(results, draft)
        else:
            count = await _write_parquet(results, draft, embeddings)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return count


async def _write_csv(results: AsyncIterator[FaceResult], path: Path) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        async for result in results:
            values = (column(result) for column in COLUMNS.values())
            writer.writerow([_text(value) for value in values])
            count += 1
    return count


def _text(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.7g}" if isinstance(value, float) else value


async def _write_parquet(results: AsyncIterator[FaceResult], path: Path, embeddings: bool) -> int:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("Parquet needs pyarrow: pip install 'sfic[export]'") from error
    time = arrow.timestamp("us", tz="UTC")
    kinds = {"cursor": arrow.int64(), "captured": time, "analysed": time, "known": arrow.bool_()}
    names = {"face_id", "camera_id", "edge_id", "visit_id", "model_bundle", "expression"}
    fields = [
        (name, kinds.get(name) or (arrow.string() if name in names else arrow.float32()))
        for name in COLUMNS
    ]
    columns = dict(COLUMNS)
    if embeddings:
        fields.append(("embedding", arrow.list_(arrow.float32())))
        columns["embedding"] = lambda result: result.embedding if result.known else None
    schema = arrow.schema(fields)
    count = 0
    group: list[FaceResult] = []
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def write() -> None:
            arrays = {name: [column(r) for r in group] for name, column in columns.items()}
            writer.write_table(arrow.table(arrays, schema=schema))
            group.clear()

        async for result in results:
            group.append(result)
            count += 1
            if len(group) == _GROUP:
                write()
        if group:
            write()
    return count
