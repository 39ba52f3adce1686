"""Work that gives way to an event."""

import asyncio

import pytest

from components.bus.process import unless


async def test_work_that_ends_first_gives_its_result() -> None:
    """The event is not waited for."""
    assert await unless(asyncio.Event(), asyncio.sleep(0, "done")) == "done"


async def test_work_is_cancelled_by_the_event() -> None:
    """It can tidy up before `unless` returns."""
    event, tidied = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            tidied.set()
        return "done"

    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await unless(event, work()) is None
    assert tidied.is_set()


async def test_an_error_of_the_work_is_raised() -> None:
    """In a group, as a TaskGroup does."""

    async def work() -> None:
        raise KeyError("no")

    with pytest.raises(ExceptionGroup) as error:
        await unless(asyncio.Event(), work())
    assert [type(each) for each in error.value.exceptions] == [KeyError]


async def test_to_cancel_it_is_to_cancel_the_work() -> None:
    """No task outlives it."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    racing = asyncio.ensure_future(unless(asyncio.Event(), work()))
    await started.wait()
    racing.cancel()
    await asyncio.gather(racing, return_exceptions=True)
    assert racing.cancelled()
    assert ended.is_set()
