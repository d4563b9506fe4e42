"""The command line `sfic`: entry point, and how every failure becomes one line and an exit code.

What belongs here: putting the commands together. Each command is in the module of its kind:
`files` (encode, decode, info, analyze), `services` (serve, camera, reconstruct, demo), `evaluate`
(eval), `results` (results export), `security` (certs, token, grant, forget, audit), `nats` (nats
init). What a command needs is imported inside it, so that `sfic --help` stays quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from sfic.cli import backup, evaluate, files, nats, results, security, services
from sfic.errors import InvalidInput, MissingExtra, SficError
from sfic.threads import limit_blas_threads

__all__ = ["app", "main"]

INTERRUPTED = 130

# Modules that an extra brings, by the name of the extra.
_EXTRA_OF = {
    "onnxruntime": "cpu",
    "torch": "train",
    "onnx": "train",
    "openvino": "cpu",
    "safetensors": "train",
    "scipy": "train",
    "fastapi": "console",
    "uvicorn": "console",
}

app = typer.Typer(
    name="sfic",
    help="Scalable face image coding: a face in three layers, for machines and for people.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sfic {version('sfic')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


files.add_to(app)
services.add_to(app)
evaluate.add_to(app)
results.add_to(app)
security.add_to(app)
backup.add_to(app)
nats.add_to(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the CLI on `arguments` (default: the process's) and exit.

    Exit codes: 0 done, 1 our own fault, 2 wrong input, 3 no face, 4 something needed is not there,
    5 a limit was reached, 130 interrupted. `SFIC_DEBUG=1` shows the traceback of any failure.
    """
    limit_blas_threads()
    try:
        code = app(
            args=None if arguments is None else list(arguments),
            prog_name="sfic",
            standalone_mode=False,
        )
    except Exception as error:
        if os.environ.get("SFIC_DEBUG"):
            raise
        sys.exit(_report(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(code or 0)


def _report(error: Exception) -> int:
    """Print the failure as one line on stderr; returns the exit code."""
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    message, code = _explain(error)
    if message:
        print(f"sfic: {' '.join(message.split())}", file=sys.stderr)
    return code


def _explain(error: Exception) -> tuple[str, int]:
    """Message and exit code of a failure."""
    if isinstance(error, SficError):
        return error.message, error.exit_code
    if isinstance(error, typer.TyperException):
        return error.format_message(), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRA_OF:
        name = (error.name or "").split(".")[0]
        extra = _EXTRA_OF[name]
        return (
            f"{name} is not installed: pip install 'sfic[{extra}]'"
            + (" (or 'sfic[gpu]')" if extra == "cpu" else ""),
            MissingExtra.exit_code,
        )
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", InvalidInput.exit_code
    return f"internal error: {type(error).__name__}: {error} (SFIC_DEBUG=1 shows where)", 1
