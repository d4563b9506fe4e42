"""The commands on results of analytics: `results export` and `results thresholds`.

What belongs here: options and what is printed. Reading results is the client's, writing files
`sfic.export`'s, and what a similarity means is the model bundle's.
"""

from __future__ import annotations

from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sfic.cli.security import CaFile, IdentityPrefix, TokenFile, identity_of

__all__ = ["add_to"]

ANALYTICS = "127.0.0.1:50052"


class FileFormat(str, Enum):
    """What a file of results can be."""

    csv = "csv"
    parquet = "parquet"


results = typer.Typer(help="What analytics read from faces.", no_args_is_help=True)

_Time = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
        help="Capture time, UTC, included.",
    ),
]


@results.command()
def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    format: Annotated[FileFormat, typer.Option(help="parquet needs the extra export.")],
    camera: Annotated[
        list[str] | None, typer.Option(help="Only this camera; may be given several times.")
    ] = None,
    since: _Time = None,
    until: _Time = None,
    after_cursor: Annotated[
        int, typer.Option(min=0, help="Only results behind this cursor: for the next part.")
    ] = 0,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Also the identities (Parquet). Biometric data.")
    ] = False,
    analytics: Annotated[str, typer.Option(help="Address of the service.")] = ANALYTICS,
    identity: IdentityPrefix = None,
    ca: CaFile = None,
    token: TokenFile = None,
) -> None:
    """Write the results that are kept to a CSV or Parquet file."""
    import asyncio

    from sfic.client import AnalyticsClient
    from sfic.export import export_results

    def utc(time: datetime | None) -> datetime | None:
        return None if time is None else time.replace(tzinfo=timezone.utc)

    caller = identity_of(identity, ca, token)

    async def write() -> int:
        async with AnalyticsClient(analytics, identity=caller) as client:
            kept = client.results(
                camera=camera or (),
                since=utc(since),
                until=utc(until),
                after_cursor=after_cursor,
                follow=False,
            )
            return await export_results(kept, output, format.value, embeddings=embeddings)

    count = asyncio.run(write())
    typer.echo(f"wrote {output} ({count} result{'' if count == 1 else 's'})")


@results.command()
def thresholds(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    bundle: Annotated[
        Path | None, typer.Option(help="Model bundle, by default the one that ships.")
    ] = None,
) -> None:
    """What a similarity of two faces means: error rates at each threshold, on real pairs."""
    import json

    from rich.console import Console
    from rich.table import Table

    from sfic.codec import Codec
    from sfic.errors import BundleError

    codec = Codec.load(bundle)
    means = codec.same_person
    if means is None:
        raise BundleError(
            f"model bundle {codec.model_bundle} was not calibrated: run `python -m"
            " training.calibrate`"
        )
    rows = [(t, m, n, means.probability(t)) for t, m, n in means.error_rates]
    if as_json:
        names = ("threshold", "false_match_rate", "false_non_match_rate", "same_person")
        told = [dict(zip(names, row, strict=True)) for row in rows]
        pairs = codec.bundle.meta["same_person"]["pairs"]
        typer.echo(
            json.dumps({"model_bundle": codec.model_bundle, "pairs": pairs, "thresholds": told})
        )
        return
    table = Table(title=f"similarity of two faces, model bundle {codec.model_bundle}")
    for heading in ("threshold", "two people match", "one person does not", "probability of one"):
        table.add_column(heading, justify="right")
    for threshold, match, other, probability in rows:
        if match < 1.0 and other < 1.0:
            table.add_row(f"{threshold:.2f}", *(f"{x:.1%}" for x in (match, other, probability)))
    Console().print(table)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(results, name="results")
