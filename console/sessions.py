"""Who is looking: sessions of people who signed in with their token.

Belongs here: cookies to people, and what a person's roles allow. Does not belong here: what the
services allow; they check the same token again with every call.

A session holds the person's token in memory and nowhere else; the browser gets a random name for
it. The token is checked anew at each request, so that a session never outlives it.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Any, Final

from console.peers import Caller
from console.settings import ConsoleSettings
from sfic.errors import AccessDenied, Unauthenticated
from sfic.service.access import LOCAL
from sfic.service.addresses import is_loopback
from sfic.service.tokens import TokenVerifier

__all__ = ["COOKIE", "Sessions"]

COOKIE: Final = "sfic-console"
_MOST_SESSIONS: Final = 10_000
_PEOPLE: Final = frozenset({"operator", "admin"})


class Sessions:
    """Signed-in people; without `token_key` everybody is the local admin, as in the services."""

    def __init__(self, settings: ConsoleSettings) -> None:
        """Raises `ConfigError` for a token key that cannot be used."""
        key = settings.token_key
        self._tokens = None if key is None else TokenVerifier(key)
        self._local = is_loopback(settings.listen)
        self._sessions: OrderedDict[str, str] = OrderedDict()

    def sign_in(self, token: str) -> str:
        """A new session for the holder of a token; its secret name.

        Raises `Unauthenticated` for a token that is not good, `AccessDenied` for one of a machine.
        """
        if not self._read(token).roles & _PEOPLE:
            raise AccessDenied("this token is not for people: it needs the role operator or admin")
        name = secrets.token_urlsafe(32)
        self._sessions[name] = token
        while len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return name

    def sign_out(self, name: str) -> None:
        """Forget a session."""
        self._sessions.pop(name, None)

    def caller(self, name: str) -> Caller:
        """The person of a session. Raises `Unauthenticated` when there is none, or no longer."""
        if self._tokens is None:
            return Caller(roles=LOCAL.roles)
        token = self._sessions.get(name)
        if token is None:
            raise Unauthenticated("sign in first")
        try:
            return self._read(token)
        except Unauthenticated:
            self.sign_out(name)
            raise

    def describe(self, name: str) -> dict[str, Any]:
        """What the page shows of the person: mode, name and roles."""
        try:
            who = self.caller(name)
        except Unauthenticated:
            return {"mode": "signed_out", "name": "", "roles": []}
        mode = "signed_in" if self._tokens else "local" if self._local else "open"
        return {"mode": mode, "name": who.name, "roles": sorted(who.roles)}

    def _read(self, token: str) -> Caller:
        if self._tokens is None:
            raise Unauthenticated("this console has no sign-in")
        name, roles = self._tokens.read(f"Bearer {token}")
        return Caller(name, roles, token)
