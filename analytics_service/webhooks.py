"""Webhooks: results or alerts posted to an address, signed, at least once.

Belongs here: one delivery after the other for each hook, and its place in the log. Does not belong
here: what results and alerts are. The form is that of Standard Webhooks
(standardwebhooks.com): `webhook-id`, `webhook-timestamp` and `webhook-signature`, the last
"v1," and the base64 of HMAC-SHA256 over "id.timestamp.body". `sfic.webhook` checks it.

A delivery is written down before it is sent, and its place moves when the receiver has answered
2xx: after any stop it is sent again with the same id. Embeddings and landmarks are never posted.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import uuid4

import httpx
import structlog
from google.protobuf.json_format import MessageToDict

from analytics_service.metrics import AnalyticsMetrics
from analytics_service.records import StoredResult
from analytics_service.settings import WebhookSettings
from analytics_service.streams import Announcer
from analytics_service.watchlists import StoredAlert
from sfic.errors import ConfigError, StorageError
from sfic.service.client import Backoff
from sfic.service.sqlite import Database
from sfic.webhook import WebhookSecret

__all__ = ["HookStore", "Page", "Webhook", "load_secret"]

log = structlog.get_logger(__name__)

Page: TypeAlias = Callable[[int, int], Awaitable[Sequence[StoredResult | StoredAlert]]]
"""Reads a log: (after, limit) -> entries."""

_BATCH = 100
_TIMEOUT_SECONDS = 15.0
_LONGEST_WAIT_SECONDS = 300.0
_NEVER_POSTED = ("embedding", "landmarks")


@dataclass(frozen=True)
class Delivery:
    """What is sent at once: the entries of a log from behind `after` up to `until`."""

    delivery_id: str
    after: int
    until: int


class HookStore:
    """The place of each hook in its log, and the delivery that is under way."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, hooks: Mapping[str, int]) -> None:
        """Makes hooks known, new ones at the entry given; forgets those that are not named."""

        def work(connection: sqlite3.Connection) -> None:
            marks = ", ".join("?" * len(hooks))
            connection.execute(f"DELETE FROM hooks WHERE name NOT IN ({marks})", list(hooks))
            connection.executemany(
                "INSERT OR IGNORE INTO hooks (name, cursor) VALUES (?, ?)", hooks.items()
            )

        await self._database.write(work)

    async def place(self, name: str) -> tuple[int, Delivery | None]:
        """All up to this cursor is delivered, and the delivery that is under way."""
        cursor, delivery_id, until = await self._database.read(
            lambda c: c.execute(
                "SELECT cursor, delivery_id, until FROM hooks WHERE name = ?", (name,)
            ).fetchone()
        )
        return cursor, Delivery(delivery_id, cursor, until) if delivery_id else None

    async def begin(self, name: str, delivery: Delivery) -> None:
        """Writes down what is about to be sent."""
        await self._database.write(
            lambda c: c.execute(
                "UPDATE hooks SET delivery_id = ?, until = ? WHERE name = ?",
                (delivery.delivery_id, delivery.until, name),
            )
        )

    async def end(self, name: str, until: int) -> None:
        """All up to `until` is delivered."""
        await self._database.write(
            lambda c: c.execute(
                "UPDATE hooks SET cursor = ?, delivery_id = NULL, until = NULL WHERE name = ?",
                (until, name),
            )
        )


class Webhook:
    """Sends the entries of one log to one address, for ever."""

    def __init__(
        self,
        settings: WebhookSettings,
        secret: WebhookSecret,
        store: HookStore,
        announcer: Announcer,
        page: Page,
        metrics: AnalyticsMetrics,
    ) -> None:
        """`page(after, limit)` reads the log."""
        self.key = f"{settings.name}:{settings.sends}"
        """The hook's name in the store; a hook that sends something else is another one."""
        self._settings = settings
        self._secret = secret
        self._store = store
        self._announcer = announcer
        self._page = page
        self._metrics = metrics
        self._backoff = Backoff(first=0.5, longest=_LONGEST_WAIT_SECONDS)

    async def run(self) -> None:
        """Delivers until cancelled."""
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            while True:
                try:
                    await self._deliver_next(client)
                except StorageError as error:
                    log.error("webhook waits", hook=self._settings.name, reason=error.message)
                    await asyncio.sleep(self._backoff.next_seconds())

    async def _deliver_next(self, client: httpx.AsyncClient) -> None:
        seen = self._announcer.newest
        cursor, delivery = await self._store.place(self.key)
        self._metrics.hook_waiting.labels(self._settings.name).set(max(0, seen - cursor))
        entries = await self._page(cursor, _BATCH)
        if delivery is not None:
            entries = [entry for entry in entries if entry.cursor <= delivery.until]
        elif entries:
            delivery = Delivery(uuid4().hex, cursor, entries[-1].cursor)
        else:
            await self._announcer.wait_beyond(seen)
            return
        items = [item for entry in entries if (item := self._item(entry)) is not None]
        # Retention may have taken what was under way, and filters may leave nothing.
        if items:
            await self._store.begin(self.key, delivery)
            await self._send(client, delivery, items)
        await self._store.end(self.key, delivery.until)

    async def _send(
        self, client: httpx.AsyncClient, delivery: Delivery, items: list[dict[str, Any]]
    ) -> None:
        """Returns when the receiver has taken it."""
        hook = self._settings
        body = json.dumps({"type": hook.sends, "hook": hook.name, hook.sends: items}).encode()
        while True:
            headers = {
                "content-type": "application/json",
                **self._secret.headers(delivery.delivery_id, body, int(time.time())),
            }
            try:
                answer = await client.post(hook.url, content=body, headers=headers)
                outcome = "OK" if answer.is_success else str(answer.status_code)
            except httpx.HTTPError as error:
                outcome, reason = "ERROR", str(error) or type(error).__name__
            else:
                reason = f"status {answer.status_code}"
            self._metrics.hook_deliveries.labels(hook.name, outcome).inc()
            if outcome == "OK":
                self._backoff.reset()
                return
            wait = self._backoff.next_seconds()
            log.warning(
                "webhook not delivered",
                hook=hook.name,
                reason=reason,
                entries=len(items),
                retry_seconds=round(wait, 1),
            )
            await asyncio.sleep(wait)

    def _item(self, entry: StoredResult | StoredAlert) -> dict[str, Any] | None:
        message = entry.message()
        cameras = self._settings.camera_ids
        if cameras and message.face.camera_id not in cameras:
            return None
        for name in _NEVER_POSTED:
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
        fields = MessageToDict(message, preserving_proto_field_name=True)
        return {"cursor": entry.cursor, **fields}


def load_secret(settings: WebhookSettings) -> WebhookSecret:
    """The secret of a hook; `ConfigError` when its file does not hold one."""
    path = settings.secret_file.expanduser()
    try:
        return WebhookSecret(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ConfigError(
            f"webhook {settings.name}: cannot read {path}: {error.strerror or error}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"webhook {settings.name}: {path}: {error}") from error
