"""The commands around security: `certs`, `token`, `grant`, `forget`, `audit`; and who calls.

What belongs here: options and what is printed. Certificates, tokens, grants and the audit log are
made elsewhere.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfic.service.identity import Identity
    from sfic.v1 import control_pb2

__all__ = ["CaFile", "IdentityPrefix", "TokenFile", "add_to", "identity_of"]

CERTS = Path("certs")
EDGE = "127.0.0.1:50051"

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
    from sfic.certificates import LOCAL_HOSTS, issue, make_ca
    from sfic.roles import ROLES, Role
    from sfic.secret_files import write_secret
    from sfic.service.tokens import make_token_key

    made = [folder / "ca.pem"] if make_ca(folder) else []
    holders: dict[str, tuple[Role, ...]] = {
        "edge": (),
        "nats": (),
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


Edge = Annotated[str, typer.Option(help="Address of the edge.")]
Camera = Annotated[str, typer.Option(help="Faces of this camera.")]


def grant(
    face_id: Annotated[str, typer.Argument(metavar="[FACE_ID]", show_default=False)] = "",
    purpose: Annotated[str, typer.Option(help="Why; on the audit log.")] = "",
    camera: Camera = "",
    since: Annotated[datetime | None, typer.Option(help="Faces captured from then on.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Faces captured until then.")] = None,
    layers: Annotated[
        str, typer.Option(help="Highest layer: middle, a whole picture, or enhanced, its detail.")
    ] = "enhanced",
    decoder: Annotated[str, typer.Option(help="The one decoder that may; empty: any.")] = "",
    hours: Annotated[float, typer.Option(min=0.01, help="When the grant ends.")] = 24.0,
    revoke: Annotated[str, typer.Option(metavar="GRANT_ID", help="End a grant.")] = "",
    show: Annotated[bool, typer.Option("--list", help="List the grants that hold.")] = False,
    edge: Edge = EDGE,
    identity: IdentityPrefix = None,
    ca: CaFile = None,
    token: TokenFile = None,
) -> None:
    """Let decoders see the higher layers of a face, a camera or a time; list and end grants."""
    import asyncio

    from sfic.grants import create_grant, list_grants, revoke_grant, timestamp
    from sfic.layers import as_layer
    from sfic.v1 import control_pb2

    caller = identity_of(identity, ca, token)
    if show:
        for each in asyncio.run(list_grants(edge, caller)):
            typer.echo(_told(each))
        return
    if revoke:
        typer.echo(f"ended: {_told(asyncio.run(revoke_grant(edge, caller, revoke)))}")
        return
    request = control_pb2.CreateGrantRequest(
        scope=control_pb2.GrantScope(face_id=face_id, camera_id=camera),
        highest=f"LAYER_{as_layer(layers).upper()}",
        decoder=decoder,
        purpose=purpose,
    )
    if since is not None:
        request.scope.captured_from.CopyFrom(timestamp(since.timestamp()))
    if until is not None:
        request.scope.captured_until.CopyFrom(timestamp(until.timestamp()))
    typer.echo(f"granted: {_told(asyncio.run(create_grant(edge, caller, request, hours)))}")


def _told(grant: control_pb2.Grant) -> str:
    """A grant in a line."""
    from sfic.v1 import common_pb2

    scope = grant.scope
    parts = [f"face {scope.face_id}" if scope.face_id else ""]
    parts.append(f"camera {scope.camera_id}" if scope.camera_id else "")
    for field, word in (("captured_from", "from"), ("captured_until", "until")):
        if scope.HasField(field):
            parts.append(f"{word} {getattr(scope, field).ToJsonString()}")
    what = " ".join(part for part in parts if part)
    layer = common_pb2.Layer.Name(grant.highest).removeprefix("LAYER_").lower()
    return (
        f"{grant.grant_id}  up to {layer} of {what}, for {grant.decoder or 'any decoder'},"
        f" by {grant.granted_by}, until {grant.expires_time.ToJsonString()}: {grant.purpose}"
    )


def forget(
    face_id: Annotated[
        list[str] | None, typer.Argument(metavar="[FACE_ID]...", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; on the audit log.")] = "",
    camera: Camera = "",
    before: Annotated[datetime | None, typer.Option(help="Faces captured before then.")] = None,
    edge: Edge = EDGE,
    identity: IdentityPrefix = None,
    ca: CaFile = None,
    token: TokenFile = None,
) -> None:
    """Forget faces for good: their keys at the edge, and what came of them elsewhere."""
    import asyncio

    from sfic.grants import timestamp
    from sfic.service.client import open_channel, sfic_errors
    from sfic.v1 import control_pb2, control_pb2_grpc

    scope = control_pb2.ForgetScope(face_ids=face_id or [], camera_id=camera)
    if before is not None:
        scope.captured_before.CopyFrom(timestamp(before.timestamp()))
    request = control_pb2.ForgetRequest(scope=scope, reason=reason)

    async def ask() -> control_pb2.ForgetResponse:
        async with open_channel(edge, identity=identity_of(identity, ca, token)) as channel:
            with sfic_errors(f"edge at {edge}"):
                stub = control_pb2_grpc.EdgeControlStub(channel)
                answer: control_pb2.ForgetResponse = await stub.Forget(request)
                return answer

    answer = asyncio.run(ask())
    typer.echo(
        f"forgotten: {answer.faces} face{'s' if answer.faces != 1 else ''} kept at the edge"
        f" (order {answer.cursor}); connected services follow now, others at their next contact"
    )


audit = typer.Typer(help="The audit log of an edge.", no_args_is_help=True)

LogFile = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="audit.jsonl of an edge; none: ask the edge for it."),
]


@audit.command("show")
def audit_show(
    file: LogFile = None,
    edge: Edge = EDGE,
    identity: IdentityPrefix = None,
    ca: CaFile = None,
    token: TokenFile = None,
) -> None:
    """Print who did what, when and why."""
    import json

    lines, _ = _read_audit(file, edge, identity_of(identity, ca, token))
    for line in lines:
        try:
            record = json.loads(line)
            told = " ".join(f"{k}={v}" for k, v in record["what"].items() if v not in ("", []))
            row = f"{record['time'][:19]}  {record['action']}  by {record['who']}  {told}"
            typer.echo(f"{row}  {record['why']!r}")
        except (ValueError, KeyError, TypeError, AttributeError):
            typer.echo(f"not a line of an audit log: {line[:80]!r}")


@audit.command("verify")
def audit_verify(
    file: LogFile = None,
    head: Annotated[str, typer.Option(help="A head noted earlier, to be found in the log.")] = "",
    edge: Edge = EDGE,
    identity: IdentityPrefix = None,
    ca: CaFile = None,
    token: TokenFile = None,
) -> None:
    """Check that no line was changed, removed or put in; prints the head, to be noted elsewhere."""
    from sfic.audit import verify_lines
    from sfic.errors import AuditBroken

    lines, end = _read_audit(file, edge, identity_of(identity, ca, token))
    verdict = verify_lines(lines, end, head)
    if verdict.problems:
        more = len(verdict.problems) - 1
        raise AuditBroken(verdict.problems[0] + (f" (and {more} more)" if more else ""))
    typer.echo(f"{verdict.lines} lines, none changed or missing; head {verdict.head}")


def _read_audit(file: Path | None, edge: str, caller: Identity) -> tuple[list[str], str]:
    """Lines and head of an audit log, from a file or an edge."""
    import asyncio

    from sfic.audit import read_log
    from sfic.service.client import open_channel, sfic_errors
    from sfic.v1 import control_pb2, control_pb2_grpc

    if file is not None:
        lines, head = read_log(file)
        return list(lines), head

    async def ask() -> list[control_pb2.ReadAuditResponse]:
        async with open_channel(edge, identity=caller) as channel:
            with sfic_errors(f"edge at {edge}"):
                stub = control_pb2_grpc.EdgeControlStub(channel)
                return [part async for part in stub.ReadAudit(control_pb2.ReadAuditRequest())]

    parts = asyncio.run(ask())
    return [part.line for part in parts[:-1]], parts[-1].head


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(certs, name="certs")
    app.add_typer(audit, name="audit")
    for command in (token, grant, forget):
        app.command()(command)
