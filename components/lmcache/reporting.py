"""Tells the graph's workers what their LMCache server holds: from its events, over NATS."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from components.bus.client import BusError
from components.bus.process import Process
from components.engine.make import cache_server_reports
from components.graph.schema import LMCache
from components.lmcache.contents import Contents, Events
from components.lmcache.relay import Relay
from components.wire.kv import ChunksChanged

_MAX_CHUNKS = 50_000
"""Of one message, half a megabyte."""


@asynccontextmanager
async def reporting(process: Process) -> AsyncIterator[str]:
    """Yield the URL to which the LMCache server of this process shall report; empty when nobody wants to know."""
    settings = process.graph.lmcache
    if settings is None or not cache_server_reports(process.graph):
        yield ""
        return
    contents, store = Contents(), process.member.name

    async def hear(events: Events) -> None:
        change = contents.apply(events.batches)
        for message in messages(store, change.held, change.gone):
            try:
                await process.bus.publish(process.subjects.store_chunks(store), message)
            except BusError:
                return  # one wrong prediction will tell

    relay = Relay(coordinator_url(settings), hear)
    await relay.open()
    delivering = process.tasks.create_task(relay.run())
    try:
        yield relay.url
    finally:
        delivering.cancel()
        await asyncio.shield(relay.close())


def coordinator_url(settings: LMCache) -> str:
    """Return where the graph's coordinator is; empty without one."""
    return (
        f"http://{settings.host}:{settings.coordinator_port}" if settings.coordinator and settings.coordinator_port else ""
    )


def messages(store: str, held: list[int], gone: list[int]) -> list[ChunksChanged]:
    """Return what to tell of a server, in messages that are not too long."""
    parts = [ChunksChanged(store, gone=gone[at : at + _MAX_CHUNKS]) for at in range(0, len(gone), _MAX_CHUNKS)]
    return parts + [ChunksChanged(store, held[at : at + _MAX_CHUNKS]) for at in range(0, len(held), _MAX_CHUNKS)]
