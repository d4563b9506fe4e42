"""The command around NATS: `nats init`.

What belongs here: options and what is printed. The streams are made in `sfic.service.streams`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfic.cli.security import CaFile, IdentityPrefix, identity_of
from sfic.errors import InvalidInput

__all__ = ["add_to"]

nats = typer.Typer(help="Basic layers of many sites over NATS JetStream.", no_args_is_help=True)


@nats.callback()
def _root() -> None:
    """Keep `init` a command of its own, although it is the only one."""


@nats.command("init")
def nats_init(
    site: Annotated[
        list[str] | None,
        typer.Option(help="JetStream domain of a site's leaf, connected now; may be repeated."),
    ] = None,
    server: Annotated[str, typer.Option(help="The hub.")] = "nats://127.0.0.1:4222",
    keep_hours: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=87_600.0,
            help="How long streams keep faces and results: as long as the edges keep faces "
            "(retention_hours), because nothing older can be opened.",
        ),
    ] = 168.0,
    site_bytes: Annotated[
        int, typer.Option(min=1 << 20, help="Most bytes of faces at a site; then its edges wait.")
    ] = 2 << 30,
    credentials: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A .creds file of NATS.")
    ] = None,
    identity: IdentityPrefix = None,
    ca: CaFile = None,
) -> None:
    """Make the streams of the hub and of the sites named, or change them; sites it knows stay.

    Run it against the hub, once for each new site, when the site's leaf is connected.
    """
    import asyncio
    import logging

    from sfic.service.nats import NatsAccess, check_address, connected
    from sfic.service.streams import make_streams

    try:
        check_address(server)
    except ValueError as error:
        raise InvalidInput(f"--server {server}: {error}") from error
    caller = identity_of(identity, ca, None)
    access = NatsAccess(server, caller.ca, credentials, caller.certificate, caller.key)

    async def make() -> list[str]:
        async with connected(access, "sfic nats init") as (connection, _):
            return await make_streams(
                connection, site or [], keep_hours=keep_hours, site_bytes=site_bytes
            )

    # It warns of every TLS connection that ends.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    known = asyncio.run(make())
    typer.echo(f"the hub {access.server} has the faces of: {', '.join(known)}")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(nats, name="nats")
