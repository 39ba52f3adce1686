"""Waiting for whichever comes first."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first(*works: Coroutine[Any, Any, Any], timeout_s: float | None = None) -> int | None:
    """Run `works` at once until one is done, cancel the others, and return its position; None when time was up first."""
    async with asyncio.TaskGroup() as race:
        tasks = [race.create_task(work) for work in works]
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        winner = next((index for index, task in enumerate(tasks) if task.done()), None)
        for task in tasks:
            task.cancel()
    return winner
