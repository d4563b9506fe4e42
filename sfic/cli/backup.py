"""The commands `backup` and `restore`: options and what is printed.

What goes into a backup is the service's own: `edge_encoder.backup`; of analytics its database.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sfic.errors import InvalidInput

__all__ = ["add_to"]


class Kept(str, Enum):
    """Services that keep something."""

    edge = "edge"
    analytics = "analytics"


Config = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="TOML file with the service's settings."),
]


def backup(
    service: Annotated[Kept, typer.Argument(help="Of which service, on this machine.")],
    into: Annotated[
        Path, typer.Option("-o", "--output", file_okay=False, help="Folder of the backups.")
    ],
    config: Config = None,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Also the keys of the faces, without the master key."),
    ] = False,
    keep_days: Annotated[
        float | None, typer.Option(min=0.0, help="Delete backups that are older than this.")
    ] = None,
) -> None:
    """Back up a service while it runs; the keys of faces stay out unless asked for.

    A backup with keys can bring back a face that was forgotten after it was made: keep it no longer
    than that may be (--keep-days), and the master key elsewhere.
    """
    from sfic.service.backup import age_out, make_backup

    if keys and (service is not Kept.edge or keep_days is None):
        raise InvalidInput("--keys is of an edge, and needs --keep-days: keys have to age out")
    if service is Kept.edge:
        from edge_encoder.backup import back_up_edge
        from edge_encoder.settings import EdgeSettings

        made = back_up_edge(EdgeSettings.load(config=config), into, keys=keys)
    else:
        from analytics_service.settings import AnalyticsSettings

        database = AnalyticsSettings.load(config=config).database.expanduser()
        made = make_backup("analytics", [database], [], into)
    typer.echo(f"wrote {made.folder} ({', '.join(made.hashes)})")
    for folder in age_out(into, service.value, keep_days) if keep_days is not None else ():
        typer.echo(f"deleted {folder}")


def restore(
    service: Annotated[Kept, typer.Argument(help="Of which service, on this machine.")],
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="One backup, as `backup` wrote it.")
    ],
    config: Config = None,
) -> None:
    """Put a backup back, with the service stopped; nothing that is there is overwritten."""
    from sfic.service.backup import open_backup, put_back

    found = open_backup(folder, service.value)
    if service is Kept.edge:
        from edge_encoder.backup import restore_edge
        from edge_encoder.settings import EdgeSettings

        came = restore_edge(found, EdgeSettings.load(config=config))
        typer.echo(
            f"restored {came.faces} faces of {found.made.isoformat()}; dropped {came.without_keys}"
            f" without keys, forgot {came.forgotten_again} again"
        )
        return
    from analytics_service.settings import AnalyticsSettings

    database = AnalyticsSettings.load(config=config).database.expanduser()
    if list(found.hashes) != [database.name]:
        raise InvalidInput(f"{folder} holds {', '.join(found.hashes)}, not {database.name}")
    put_back(found, database.parent)
    typer.echo(f"restored {database} of {found.made.isoformat()}")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (backup, restore):
        app.command()(command)
