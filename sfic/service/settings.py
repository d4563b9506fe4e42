"""Settings of a service: defaults, a TOML file, the environment, flags; the last one wins.

One file may serve all services, each in a table of its own name (`[edge]`, `[analytics]`, ...).
Every mistake, a misspelt name included, is a `ConfigError` that names the field. What a setting
does belongs to the service that uses it, not here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from typing_extensions import Self

from sfic.errors import ConfigError
from sfic.roles import ROLES
from sfic.service.addresses import is_loopback, split_address
from sfic.service.identity import Identity
from sfic.service.nats import NatsAccess, check_address

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["SERVICE_TABLES", "EdgeClientSettings", "NatsSettings", "ServiceSettings"]

SERVICE_TABLES = ("edge", "analytics", "decoder", "console")


class ServiceSettings(BaseModel):
    """Settings that every service has; a service adds its own fields and sets `service`.

    The environment variable of a field is `SFIC_<SERVICE>__<FIELD>`, its flag `--field-name`; a
    list is written as JSON there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    service: ClassVar[str] = "service"
    """Name of the service: its table in the file and part of its environment variables."""

    listen: str = Field(
        "127.0.0.1:0",
        title="Address of the gRPC server",
        description="host:port; port 0 takes a free one. 127.0.0.1 keeps strangers out.",
    )
    metrics_listen: str = Field(
        "",
        title="Address of the Prometheus metrics",
        description="host:port of the HTTP page /metrics; empty: none.",
    )
    tls_certificate: Path | None = Field(
        None,
        title="Certificate of this service, PEM",
        description="With it calls are taken over TLS only. New files are taken without a restart.",
    )
    tls_key: Path | None = Field(None, title="Private key of the certificate, PEM")
    tls_client_ca: Path | None = Field(
        None,
        title="CA of the clients, PEM",
        description="Set: a client has to show a certificate of it, which names its role.",
    )
    token_key: Path | None = Field(
        None,
        title="Key that clients' tokens are checked with",
        description="Ed25519 in PEM, or 32 random bytes or more for HS256. Set: a client without "
        "a certificate has to send a token.",
    )
    insecure: bool = Field(
        False,
        title="Take calls of strangers",
        description="Needed to listen beyond this machine without TLS, or without a way to know "
        "the callers. Whoever reaches the port is admin then.",
    )
    rate_limits: dict[str, int] = Field(
        {"camera": 120, "analytics": 600, "decoder": 60_000, "operator": 1_200, "admin": 6_000},
        title="Calls a minute for each client, by role",
        description="A stream is one call. Over it: RESOURCE_EXHAUSTED with the time to wait. A "
        "role that is not named has no limit, nor have clients that need not say who they are.",
    )
    max_message_bytes: int = Field(
        16 * 1024 * 1024,
        ge=64 * 1024,
        le=256 * 1024 * 1024,
        title="Largest gRPC message, in bytes",
        description="A larger one ends its call with RESOURCE_EXHAUSTED.",
    )
    max_streams_per_connection: int = Field(
        64,
        ge=1,
        le=10_000,
        title="Calls at once on one connection",
        description="Further ones wait.",
    )
    handshake_seconds: float = Field(
        10.0,
        gt=0.0,
        le=300.0,
        title="Time for a new connection to say that it speaks gRPC, in seconds",
        description="One that is slower is closed; so is one without a call for ten minutes.",
    )
    max_calls: int = Field(
        1024,
        ge=1,
        le=100_000,
        title="Calls at once over all connections",
        description="Further ones are refused with RESOURCE_EXHAUSTED.",
    )
    shutdown_grace_seconds: float = Field(
        20.0,
        ge=0.0,
        le=600.0,
        title="Time to finish work at shutdown, in seconds",
        description="What is still running after it is cancelled.",
    )
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        title="Where traces are sent",
        description="An OpenTelemetry collector, http://host:port (OTLP over gRPC); needs the "
        "extra otel. Empty: no traces.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        title="Form of the log",
        description="json: one object a line; console: for people; auto: console on a terminal.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", title="Least severity that is logged"
    )

    @field_validator("listen")
    @classmethod
    def _listen_is_address(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("metrics_listen")
    @classmethod
    def _metrics_listen_is_address(cls, value: str) -> str:
        if value:
            split_address(value)
        return value

    @field_validator("rate_limits")
    @classmethod
    def _rate_limits_name_roles(cls, value: dict[str, int]) -> dict[str, int]:
        for role, calls in value.items():
            if role not in ROLES:
                raise ValueError(f"no role {role!r}; known are {', '.join(ROLES)}")
            if calls < 1:
                raise ValueError(f"{role} must have at least 1")
        return value

    @model_validator(mode="after")
    def _strangers_stay_out(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key need each other")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.insecure or is_loopback(self.listen):
            return self
        if self.tls_certificate is None:
            raise ValueError(
                f"listen {self.listen} without TLS would show faces to the network: set "
                "tls_certificate and tls_key, or insecure = true"
            )
        if not self.knows_callers:
            raise ValueError(
                f"listen {self.listen} without a way to know the callers: set tls_client_ca or "
                "token_key, or insecure = true"
            )
        return self

    def own_identity(self) -> Identity:
        """How this service calls itself, for health checks."""
        return Identity.of_server(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @property
    def knows_callers(self) -> bool:
        """Whether clients have to say who they are; else everyone who gets in is admin."""
        return self.tls_client_ca is not None or self.token_key is not None

    @classmethod
    def load(
        cls,
        argv: Sequence[str] = (),
        *,
        config: Path | str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Read the settings.

        `argv` holds flags without the program's name (`--config FILE` is one of them and wins over
        `config`); `environment` defaults to the process's. Raises `ConfigError` naming the field.
        `--help` prints all settings and exits.
        """
        flags = cls._parse_flags(argv)
        config = flags.pop("config", None) or config
        values: dict[str, Any] = {}
        if config is not None:
            values.update(cls._read_file(Path(config)))
        values.update(cls._read_environment(os.environ if environment is None else environment))
        values.update(flags)
        return cls.make(**values)

    @classmethod
    def make(cls, **values: Any) -> Self:
        """Build from values alone (no file, environment or flags). Raises `ConfigError`."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(
                "; ".join(cls._describe(item) for item in error.errors()),
                field=".".join(str(part) for part in error.errors()[0]["loc"]),
            ) from error

    @classmethod
    def _environment_prefix(cls) -> str:
        return f"SFIC_{cls.service.upper()}__"

    @classmethod
    def _describe(cls, item: ErrorDetails) -> str:
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        if item["type"] == "extra_forbidden":
            return f"{cls.service}.{name}: no such setting"
        problem = item["msg"].removeprefix("Value error, ")
        problem = problem[:1].lower() + problem[1:]
        return f"{cls.service}.{name}: {problem} (got {str(item['input'])[:80]!r})"

    @classmethod
    def _read_file(cls, path: Path) -> dict[str, Any]:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not TOML: {error}") from error
        for table in content:
            if table not in SERVICE_TABLES:
                raise ConfigError(
                    f"{path}: no table {table!r}; known are {', '.join(SERVICE_TABLES)}",
                    field=table,
                )
        table = content.get(cls.service, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {cls.service!r} must be a table", field=cls.service)
        return table

    @classmethod
    def _read_environment(cls, environment: Mapping[str, str]) -> dict[str, Any]:
        prefix = cls._environment_prefix()
        values: dict[str, Any] = {}
        for variable, text in environment.items():
            if variable.startswith(prefix):
                field = variable.removeprefix(prefix).lower()
                if field not in cls.model_fields:
                    raise ConfigError(f"{variable}: {cls.service} has no such setting", field=field)
                values[field] = cls._from_text(field, text)
        return values

    @classmethod
    def _parse_flags(cls, argv: Sequence[str]) -> dict[str, Any]:
        parser = _Parser(
            prog=cls.service,
            allow_abbrev=False,
            description=f"Settings of {cls.service}; each also as {cls._environment_prefix()}NAME "
            f"in the environment and in table [{cls.service}] of the file.",
        )
        parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
        for name, field in cls.model_fields.items():
            about = ". ".join(part for part in (field.title, field.description) if part)
            default = "" if field.is_required() else f" (default: {field.default})"
            # A switch may stand alone: --insecure.
            alone: dict[str, Any] = {"nargs": "?", "const": "true"}
            parser.add_argument(
                "--" + name.replace("_", "-"),
                dest=name,
                metavar="VALUE",
                help=(about + default).replace("%", "%%"),
                **(alone if field.annotation is bool else {}),
            )
        given = {k: v for k, v in vars(parser.parse_args(list(argv))).items() if v is not None}
        return {k: v if k == "config" else cls._from_text(k, v) for k, v in given.items()}

    @classmethod
    def _from_text(cls, field: str, text: str) -> Any:
        """Read a list or table from JSON; pydantic reads everything else from its text."""
        if not text.startswith(("[", "{")):
            return text
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{cls.service}.{field}: not JSON: {error}", field=field) from error


class EdgeClientSettings(ServiceSettings):
    """What a service that calls edges can be told beside its own server's settings."""

    edge_ca: Path | None = Field(
        None,
        title="CA of the edges' certificates, PEM",
        description="Set: edges are called over TLS, and see tls_certificate as ours.",
    )
    edge_token: Path | None = Field(
        None,
        title="File with the token that edges are shown",
        description="Read anew for each call.",
    )

    def edge_identity(self) -> Identity:
        """How this service calls an edge."""
        return Identity(
            ca=self.edge_ca,
            certificate=self.tls_certificate,
            key=self.tls_key,
            token=self.edge_token,
        )


class NatsSettings(ServiceSettings):
    """What a service can be told whose basic layers may travel over NATS JetStream."""

    nats: str = Field(
        "",
        title="NATS server that basic layers travel over",
        description="nats://host:port or tls://host:port: the site's leaf for an edge, the hub for "
        "analytics. Empty: without NATS, straight from the edges. docs/how-to/nats.md",
    )
    nats_ca: Path | None = Field(
        None,
        title="CA of the NATS server's certificate, PEM",
        description="Set: NATS is called over TLS, and sees tls_certificate as ours.",
    )
    nats_credentials: Path | None = Field(
        None,
        title="Credentials file of a NATS user",
        description="A .creds file, as nsc makes it.",
    )

    @field_validator("nats")
    @classmethod
    def _nats_is_address(cls, value: str) -> str:
        if value:
            check_address(value)
        return value

    @model_validator(mode="after")
    def _nats_stays_private(self) -> Self:
        if not self.nats or self.insecure or self.nats_access().secure:
            return self
        if not is_loopback(check_address(self.nats)):
            raise ValueError(
                f"nats {self.nats_access().server} without TLS would show to the network which "
                "camera saw a face and when: use tls:// or nats_ca, or insecure = true"
            )
        return self

    def nats_access(self) -> NatsAccess:
        """How this service calls NATS."""
        return NatsAccess(
            self.nats,
            ca=self.nats_ca,
            credentials=self.nats_credentials,
            certificate=self.tls_certificate,
            key=self.tls_key,
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog}: {message}")
