"""One name, one process: a second one of a graph gives way before it disturbs the first. On a real NATS server."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from components.bus.client import Bus
from components.bus.member import Member, NameTakenError
from components.graph.schema import Nats
from components.wire.process import ProcessStatus
from components.wire.subjects import Subjects
from tests.support.decode_process import decode_process
from tests.support.nats import nats_server

SUBJECTS = Subjects("test")


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A NATS server of the test's own."""
    async with nats_server(tmp_path / "nats") as settings:
        yield settings


@asynccontextmanager
async def a_member(nats: Nats, name: str) -> AsyncIterator[Member]:
    """A member of the graph that has not said anything yet."""
    bus = await Bus.connect(nats, "test")
    try:
        yield Member(bus, SUBJECTS, name, "decode")
    finally:
        await bus.close()


async def told(statuses: list[ProcessStatus], wait_for: int) -> None:
    """Wait until so many statuses were told."""
    async with asyncio.timeout(10):
        while len(statuses) < wait_for:
            await asyncio.sleep(0.01)


async def test_a_name_is_taken_while_its_process_lives(nats: Nats, tmp_path: Path) -> None:
    """The second process ends with one line that names the first, which nobody takes for restarted; then it is free."""
    statuses: list[ProcessStatus] = []

    async def hear(status: ProcessStatus) -> None:
        statuses.append(status)

    async with a_member(nats, "decode-1") as other:
        await other._bus.subscribe(SUBJECTS.every_status(), ProcessStatus, hear)
        async with decode_process(nats, tmp_path, "decode-0") as first:
            await told(statuses, 1)
            (tmp_path / "again").mkdir()
            async with decode_process(nats, tmp_path / "again", "decode-0") as second:
                assert await asyncio.wait_for(second.wait(), 20) == 1
            said = (tmp_path / "again" / "decode-0.log").read_text()
            assert f"name decode-0 is taken by host {socket.gethostname()} pid {first.pid}" in said
            assert {status.incarnation for status in statuses} == {statuses[0].incarnation}
            first.kill()
            await first.wait()
            before_s = time.monotonic()
            async with a_member(nats, "decode-0") as heir:
                await heir.claim()
            assert time.monotonic() - before_s < 0.5


async def test_of_two_in_the_same_instant_one_stays(nats: Nats) -> None:
    """Neither hears of the other when it asks; one of them gives way as soon as both have spoken."""
    async with a_member(nats, "decode-0") as one, a_member(nats, "decode-0") as two:
        await asyncio.gather(one.claim(), two.claim())
        running = {asyncio.create_task(one.run()), asyncio.create_task(two.run())}
        done, left = await asyncio.wait(running, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        (loser,) = done
        assert isinstance(loser.exception(), NameTakenError)
        assert str(os.getpid()) in str(loser.exception())
        await asyncio.sleep(1.5)
        (winner,) = left
        assert not winner.done()
        winner.cancel()
