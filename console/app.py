"""The console over HTTP: its routes, put together.

Belongs here: paths, forms, and errors of the tree as HTTP statuses. What is behind a path has a
module of its own.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry, Counter, Gauge

from console import control, queries, system
from console.guard import Guard, allowed_hosts
from console.live import follow
from console.messages import SearchForm, face_json
from console.peers import Caller, Peers
from console.pictures import Pictures, picture_request
from console.queries import search
from console.sessions import COOKIE, Sessions
from console.settings import ConsoleSettings
from sfic.errors import InvalidInput, LimitExceeded, SficError, Unauthenticated

__all__ = ["WEB", "create_app"]

WEB = Path(__file__).parent / "web"

_HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 502,
}


async def caller(request: Request) -> Caller:
    """The person who asks; `Unauthenticated` when nobody has signed in."""
    sessions: Sessions = request.app.state.sessions
    return sessions.caller(request.cookies.get(COOKIE, ""))


Who = Annotated[Caller, Depends(caller)]


def create_app(
    settings: ConsoleSettings,
    peers: Peers,
    registry: CollectorRegistry,
    stopping: asyncio.Event,
) -> FastAPI:
    """The application; `stopping` ends the live streams."""
    app = FastAPI(title="sfic console", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.sessions = sessions = Sessions(settings)
    pictures = Pictures(peers)
    started = time.time()
    live_views: Tally[str] = Tally()
    streams = Gauge("sfic_console_live_views", "Live views open.", registry=registry)
    failures = Counter(
        "sfic_console_errors_total", "Requests that failed.", ["code"], registry=registry
    )

    @app.exception_handler(SficError)
    async def failed(request: Request, error: SficError) -> JSONResponse:
        failures.labels(error.code).inc()
        return JSONResponse(
            {"code": error.code, "message": error.message},
            _HTTP_STATUS.get(error.grpc_status, 500),
        )

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        failures.labels("INVALID_INPUT").inc()
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"code": "INVALID_INPUT", "message": f"{where}: {first['msg']}"}, 400)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "stopping" if stopping.is_set() else "serving"}

    @app.get("/api/session")
    async def session(request: Request) -> dict[str, Any]:
        return {**sessions.describe(request.cookies.get(COOKIE, "")), "version": _version()}

    @app.post("/api/session")
    async def sign_in(token: Annotated[str, Body(embed=True, max_length=4096)]) -> JSONResponse:
        name = sessions.sign_in(token.strip())
        answer = JSONResponse(sessions.describe(name))
        answer.set_cookie(
            COOKIE,
            name,
            httponly=True,
            samesite="strict",
            secure=settings.tls_certificate is not None,
        )
        return answer

    @app.delete("/api/session")
    async def sign_out(request: Request) -> JSONResponse:
        sessions.sign_out(request.cookies.get(COOKIE, ""))
        answer = JSONResponse({})
        answer.delete_cookie(COOKIE)
        return answer

    @app.get("/api/live")
    async def live(request: Request, who: Who) -> StreamingResponse:
        who.check("Analytics/SubscribeResults")
        if live_views[who.name] >= settings.max_streams_per_connection:
            raise LimitExceeded(
                f"{settings.max_streams_per_connection} live views are open already",
                limit=str(settings.max_streams_per_connection),
            )
        last = request.headers.get("last-event-id", "")
        name = request.cookies.get(COOKIE, "")

        async def events() -> AsyncIterator[bytes]:
            live_views[who.name] += 1
            try:
                with streams.track_inprogress():
                    cursor = int(last) if last.isascii() and last.isdigit() else 0
                    async for event in follow(peers, who, cursor, stopping):
                        yield event
                        # A stream ends with its session: raises when that is over.
                        sessions.caller(name)
            except Unauthenticated:
                return
            finally:
                live_views[who.name] -= 1

        return StreamingResponse(
            events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    @app.post("/api/search")
    async def search_faces(form: Annotated[SearchForm, Body()], who: Who) -> dict[str, Any]:
        return await search(peers, who, form.request())

    @app.post("/api/search/picture")
    async def search_by_picture(
        form: Annotated[str, Form()], picture: Annotated[UploadFile, File()], who: Who
    ) -> dict[str, Any]:
        asked = SearchForm.model_validate_json(form).request()
        asked.picture = await picture.read()
        return await search(peers, who, asked)

    @app.get("/api/watchlists")
    async def watchlists(who: Who) -> list[dict[str, Any]]:
        return await queries.watchlists(peers, who)

    @app.put("/api/watchlists/{name}")
    async def put_watchlist(
        name: str,
        purpose: Annotated[str, Body()],
        threshold: Annotated[float, Body(ge=0, le=1)],
        who: Who,
    ) -> dict[str, Any]:
        await queries.put_watchlist(peers, who, name, purpose, threshold)
        return {}

    @app.delete("/api/watchlists/{name}")
    async def remove_watchlist(name: str, who: Who) -> dict[str, Any]:
        await queries.remove_watchlist(peers, who, name)
        return {}

    @app.post("/api/watchlists/{name}/entries")
    async def put_entry(
        name: str,
        who: Who,
        label: Annotated[str, Form(max_length=200)],
        face_id: Annotated[str, Form(max_length=64)] = "",
        picture: Annotated[UploadFile | None, File()] = None,
    ) -> dict[str, Any]:
        content = await picture.read() if picture else b""
        await queries.put_entry(peers, who, name, label, face_id, content)
        return {}

    @app.delete("/api/watchlists/{name}/entries/{entry_id}")
    async def remove_entry(name: str, entry_id: str, who: Who) -> dict[str, Any]:
        await queries.remove_entry(peers, who, name, entry_id)
        return {}

    @app.get("/api/alerts")
    async def alerts(who: Who, after: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        return await queries.alerts(peers, who, after)

    @app.get("/api/faces/{face_id}")
    async def face(face_id: str, who: Who) -> dict[str, Any]:
        asked = SearchForm(face_id=face_id, limit=1).request()
        answer = await peers.search(asked, who)
        return face_json(answer.hits[0].analysis, detail=True)

    @app.get("/api/faces/{face_id}/preview")
    async def preview(face_id: str, who: Who) -> Response:
        return Response(await pictures.preview(face_id, who), media_type="image/jpeg")

    @app.post("/api/faces/{face_id}/levels")
    async def levels(
        face_id: str,
        who: Who,
        purpose: Annotated[str, Form()],
        highest: Annotated[str, Form()] = "enhanced",
        size: Annotated[int, Form(ge=0, le=4096)] = 0,
        paste_back: Annotated[bool, Form()] = False,
        frame: Annotated[UploadFile | None, File()] = None,
    ) -> StreamingResponse:
        content = await frame.read() if frame else b""
        asked = picture_request(face_id, purpose, highest, size, paste_back, content)
        who.check("CloudDecoder/Reconstruct")
        return StreamingResponse(pictures.levels(asked, who), media_type="application/x-ndjson")

    @app.post("/api/faces/{face_id}/picture.png")
    async def keepsake(
        face_id: str,
        who: Who,
        purpose: Annotated[str, Form()],
        highest: Annotated[str, Form()] = "enhanced",
        size: Annotated[int, Form(ge=0, le=4096)] = 0,
        paste_back: Annotated[bool, Form()] = False,
        frame: Annotated[UploadFile | None, File()] = None,
    ) -> Response:
        content = await frame.read() if frame else b""
        asked = picture_request(face_id, purpose, highest, size, paste_back, content)
        picture = await pictures.keepsake(asked, who)
        name = f'attachment; filename="sfic-{face_id}.png"'
        return Response(picture, media_type="image/png", headers={"Content-Disposition": name})

    @app.post("/api/faces/{face_id}/grant")
    async def grant_face(
        face_id: str, purpose: Annotated[str, Body(embed=True, max_length=200)], who: Who
    ) -> dict[str, Any]:
        await control.create_grant(peers, who, face_id, purpose, settings.grant_hours)
        return {}

    @app.get("/api/grants")
    async def grants(who: Who) -> list[dict[str, Any]]:
        return await control.grants(peers, who)

    @app.delete("/api/grants/{grant_id}")
    async def revoke_grant(grant_id: str, edge: str, who: Who) -> dict[str, Any]:
        if edge not in peers.controls:
            raise InvalidInput(f"edge: {edge!r} is none of ours", field="edge")
        await control.revoke_grant(peers, who, edge, grant_id)
        return {}

    @app.post("/api/forget")
    async def forget(form: Annotated[control.ForgetForm, Body()], who: Who) -> dict[str, Any]:
        return {"faces": await control.forget(peers, who, form)}

    @app.get("/api/audit")
    async def audit(who: Who) -> list[dict[str, Any]]:
        return await control.audit(peers, who)

    @app.get("/api/system")
    async def state(who: Who) -> dict[str, Any]:
        found, pages = await asyncio.gather(
            system.services(peers, who), system.figures(settings.metrics_pages)
        )
        return {
            "now": int(time.time() * 1000),
            "services": found,
            "pages": pages,
            "console": {"version": _version(), "started": int(started * 1000)},
        }

    @app.get("/api/cameras")
    async def cameras(who: Who) -> list[dict[str, Any]]:
        return await system.cameras(peers, who)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    app.mount("/", StaticFiles(directory=WEB), name="web")
    app.add_middleware(
        Guard, hosts=allowed_hosts(settings), max_body_bytes=settings.max_message_bytes
    )
    return app


def _version() -> str:
    try:
        return importlib.metadata.version("sfic")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
