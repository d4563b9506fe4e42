"""The commands around security: `certs`, `token`; and the options that say who calls.

What belongs here: options and what is printed. Certificates, tokens, grants and the audit log are
made elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfic.service.identity import Identity

__all__ = ["CaFile", "IdentityPrefix", "TokenFile", "add_to", "identity_of"]

CERTS = Path("certs")

IdentityPrefix = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        envvar="SFIC_IDENTITY",
        metavar="FOLDER/NAME",
        help="Call over TLS with FOLDER/NAME.pem and NAME-key.pem; the CA is FOLDER/ca.pem.",
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option("--ca", envvar="SFIC_CA", help="Call over TLS; the CA of the service, PEM."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token", envvar="SFIC_TOKEN", help="File with a token that says who you are."),
]


def identity_of(prefix: Path | None, ca: Path | None, token: Path | None) -> Identity:
    """What the three options say."""
    from sfic.service.identity import Identity

    if prefix is None:
        return Identity(ca=ca, token=token)
    return Identity(
        ca=ca or prefix.with_name("ca.pem"),
        certificate=prefix.with_name(f"{prefix.name}.pem"),
        key=prefix.with_name(f"{prefix.name}-key.pem"),
        token=token,
    )


certs = typer.Typer(help="Certificates of services and clients.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Option("--folder", file_okay=False, help="Where certificates and keys lie.")
]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="Name or address to serve on beside localhost; may be repeated."),
]
Days = Annotated[int, typer.Option(min=1, max=3650, help="How long they hold.")]


@certs.command("init")
def certs_init(folder: Folder = CERTS, host: Hosts = None, days: Days = 365) -> None:
    """Make a development CA, and a certificate for each service and role; keeps what is there.

    Also makes the key pair that signs tokens. The CA's key, ca-key.pem, belongs on no service's
    machine.
    """
    from sfic.certificates import LOCAL_HOSTS, issue, make_ca, write_secret
    from sfic.roles import ROLES, Role
    from sfic.service.tokens import make_token_key

    made = [folder / "ca.pem"] if make_ca(folder) else []
    holders: dict[str, tuple[Role, ...]] = {
        "edge": (),
        "console": ("operator",),
        **{role: (role,) for role in ROLES},
    }
    for name, roles in holders.items():
        if not (folder / f"{name}.pem").exists():
            hosts = [*LOCAL_HOSTS, name, *(host or [])]
            made.append(issue(folder, name, roles, hosts=hosts, days=days))
    if not (folder / "token-key.pem").exists():
        private, public = make_token_key()
        write_secret(folder / "token-key.pem", private)
        (folder / "token-public.pem").write_bytes(public)
        made.append(folder / "token-key.pem")
    for path in made:
        typer.echo(f"wrote {path}")
    if not made:
        typer.echo(f"all there already in {folder}")


@certs.command("issue")
def certs_issue(
    name: Annotated[str, typer.Argument(help="Name of the holder.")],
    role: Annotated[
        list[str] | None,
        typer.Option(help="camera, analytics, decoder, operator or admin; may be repeated."),
    ] = None,
    folder: Folder = CERTS,
    host: Hosts = None,
    days: Days = 365,
) -> None:
    """Issue a certificate by the CA in the folder; one that is there is replaced."""
    from sfic.certificates import LOCAL_HOSTS, issue
    from sfic.roles import as_role

    roles = [as_role(each) for each in role or []]
    path = issue(folder, name, roles, hosts=[*LOCAL_HOSTS, *(host or [])], days=days)
    typer.echo(f"wrote {path} ({', '.join(roles) or 'no role'}, {days} days)")


def token(
    name: Annotated[str, typer.Argument(help="Name of the holder.")],
    role: Annotated[
        list[str], typer.Option(help="camera, analytics, decoder, operator or admin; repeatable.")
    ],
    key: Annotated[
        Path, typer.Option(help="Key that signs: Ed25519 in PEM, or the secret of HS256.")
    ] = CERTS / "token-key.pem",
    hours: Annotated[float, typer.Option(min=0.01, max=87_600, help="How long it holds.")] = 24.0,
) -> None:
    """Print a signed token that says who its holder is, for --token and SFIC_TOKEN."""
    from sfic.roles import as_role
    from sfic.service.tokens import issue_token

    typer.echo(issue_token(key, name, [as_role(each) for each in role], hours * 3600))


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(certs, name="certs")
    app.command()(token)
