"""The five roles that a client can have, as certificates, tokens and settings name them.

What a role may do: `sfic.service.access`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from sfic.errors import InvalidInput

__all__ = ["ROLES", "Role", "as_role"]

Role: TypeAlias = Literal["camera", "analytics", "decoder", "operator", "admin"]

ROLES: Final[tuple[Role, ...]] = ("camera", "analytics", "decoder", "operator", "admin")


def as_role(name: str) -> Role:
    """`name` as a role; InvalidInput, listing the roles, when it is none."""
    for role in ROLES:
        if role == name:
            return role
    raise InvalidInput(f"unknown role {name!r}: one of {', '.join(ROLES)}", role=str(name))
