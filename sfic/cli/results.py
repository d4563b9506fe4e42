"""The commands on results of analytics: `results export`.

What belongs here: options and what is printed. Reading results is the client's, writing files
`sfic.export`'s.
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


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(results, name="results")
