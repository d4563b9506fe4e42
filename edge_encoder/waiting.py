"""Waiting for the first of several events, and for requests until one is set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

__all__ = ["first_set", "until_set"]

T = TypeVar("T")


async def first_set(*events: asyncio.Event) -> None:
    """Return once one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def until_set(event: asyncio.Event, items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items that come before the event is set; it may be set while one is waited for."""
    ended = asyncio.ensure_future(event.wait())
    following = asyncio.ensure_future(_next(items))
    try:
        while True:
            await asyncio.wait((following, ended), return_when=asyncio.FIRST_COMPLETED)
            if not following.done() or not (item := following.result()):
                return
            yield item[0]
            following = asyncio.ensure_future(_next(items))
    finally:
        ended.cancel()
        following.cancel()


async def _next(items: AsyncIterator[T]) -> tuple[T, ...]:
    async for item in items:
        return (item,)
    return ()
