"""What keeps other sites out: host names, origins, and the headers of every answer.

The page may be on loopback without a sign-in, and yet any site that a person visits can make their
browser send requests to loopback. So a request has to be for a name that is ours (a foreign name
pointed here is refused), and a request that changes or shows something has to come from our page.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.settings import ConsoleSettings
from sfic.service.addresses import split_address

__all__ = ["Guard", "HEADERS", "allowed_hosts"]

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "font-src 'self'",
            "img-src 'self' blob:",
            "connect-src 'self'",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def allowed_hosts(settings: ConsoleSettings) -> frozenset[str]:
    """Names that a browser may call this console by."""
    host, _ = split_address(settings.listen)
    names = {host, *settings.host_names}
    return frozenset(names | set(_LOOPBACK) if host in _LOOPBACK else names)


class Guard:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], max_body_bytes: int) -> None:
        self._app = app
        self._hosts = hosts
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on and add the headers to what comes back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fault = self._fault(scope)
        app = JSONResponse({"code": "REFUSED", "message": fault}, 403) if fault else self._app

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                # Nothing that shows a face stays in a browser's cache; files are asked again.
                headers.setdefault(
                    "Cache-Control", "no-store" if scope["path"].startswith("/api/") else "no-cache"
                )
            await send(message)

        await app(scope, receive, with_headers)

    def _fault(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = host.removeprefix("[").partition("]")[0] if "]" in host else host.partition(":")[0]
        if name not in self._hosts:
            return f"this page is not called {name!r}: add it to console.host_names"
        if not scope["path"].startswith("/api/"):
            return ""
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "asked by another site"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "asked by another site"
        # A form of another site cannot set a header, and a script of one may not.
        if scope["method"] not in ("GET", "HEAD") and "x-sfic-console" not in headers:
            return "the header X-Sfic-Console is missing"
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or int(length or 0) > self._max_body_bytes:
            return f"at most {self._max_body_bytes} bytes are taken, told in Content-Length"
        return ""
