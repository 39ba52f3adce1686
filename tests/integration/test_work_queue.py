"""A work queue on a real NATS server: leases, redelivery, burial, limits, and a server that is killed in the middle."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from components.bus.client import Bus, BusError, TooLongError
from components.bus.delivery import Delivery, LeaseLostError
from components.bus.jetstream import JetStreamAwayError, QueueFullError
from components.bus.queue_state import QueueState
from components.bus.work_queue import QueueLimits, WorkQueue
from components.graph.schema import Nats
from components.wire.messages import Cancel
from components.wire.subjects import Subjects
from tests.support.answers import Answered
from tests.support.nats import RestartableNats, nats_server

QUICK = QueueLimits(lease_s=1.0, max_deliver=2)


async def test_a_job_is_put_taken_and_done(tmp_path: Path) -> None:
    """It is typed, knows its id and age, and is gone once done; an id put twice is stored once."""
    async with nats_server(tmp_path) as nats, _queue(nats) as queue:
        assert await queue.put(Cancel(["a"]), "job-1")
        assert not await queue.put(Cancel(["a"]), "job-1")
        assert await queue.ask_state() == QueueState(1, 0, pytest.approx(0, abs=5), 0)
        [delivery] = await queue.take(4, 5)
        assert (delivery.message, delivery.id, delivery.delivery) == (Cancel(["a"]), "job-1", 1)
        assert 0 <= delivery.age_s < 5
        assert await queue.ask_state() == QueueState(0, 1, pytest.approx(0, abs=5), 0)
        await delivery.done()
        await delivery.done()
        assert await queue.ask_state() == QueueState(0, 0, 0, 0)
        assert await queue.take(4, 0) == []


async def test_jobs_come_in_order_and_as_many_as_asked_for(tmp_path: Path) -> None:
    """What waits comes at once; no taker is kept waiting for more than there is."""
    async with nats_server(tmp_path) as nats, _queue(nats) as queue:
        for number in range(5):
            await queue.put(Cancel([str(number)]), f"job-{number}")
        first, rest = await queue.take(3, 30), await queue.take(3, 30)
        assert [delivery.id for delivery in first + rest] == [f"job-{number}" for number in range(5)]
        begin_s = time.monotonic()
        assert await queue.take(3, 0.2) == []
        assert 0.2 <= time.monotonic() - begin_s < 5


async def test_an_idle_taker_gets_a_job_when_it_is_put(tmp_path: Path) -> None:
    """Pushed, not polled; and the state tells that a taker waits."""
    async with nats_server(tmp_path) as nats, _queue(nats) as taker, _queue(nats) as putter:
        taking = asyncio.create_task(taker.take(4, 30))
        async with asyncio.timeout(10):
            while (await putter.ask_state()).idle_takers == 0:
                await asyncio.sleep(0.01)
            await putter.put(Cancel([]), "job-1")
            [delivery] = await taking
        assert delivery.id == "job-1"


async def test_a_lease_ends_unless_it_is_renewed(tmp_path: Path) -> None:
    """The next taker gets the job, the first may not touch it any more; `done` is right whoever says it."""
    async with nats_server(tmp_path) as nats, _queue(nats) as one, _queue(nats) as other:
        await one.put(Cancel([]), "job-1")
        [mine] = await one.take(1, 5)
        for _ in range(4):
            await asyncio.sleep(0.5)
            await mine.in_progress()
        assert await other.take(1, 0) == []
        [theirs] = await other.take(1, 10)
        assert (theirs.id, theirs.delivery, theirs.number) == ("job-1", 2, mine.number)
        assert mine.lease_left_s == 0
        with pytest.raises(LeaseLostError):
            await mine.in_progress()
        with pytest.raises(LeaseLostError):
            await mine.release()
        with pytest.raises(LeaseLostError):
            await mine.reject("no")
        await mine.done()
        assert await one.ask_state() == QueueState(0, 0, 0, 0)


async def test_a_released_job_comes_again_at_once_or_after_a_delay(tmp_path: Path) -> None:
    """Without waiting for the lease."""
    limits = QueueLimits(lease_s=60, max_deliver=9)
    async with nats_server(tmp_path) as nats, _queue(nats, limits) as queue:
        await queue.put(Cancel([]), "job-1")
        [delivery] = await queue.take(1, 5)
        await delivery.release()
        [delivery] = await queue.take(1, 10)
        begin_s = time.monotonic()
        await delivery.release(0.5)
        [delivery] = await queue.take(1, 10)
        assert time.monotonic() - begin_s > 0.4
        assert delivery.delivery == 3


async def test_what_is_taken_too_often_is_buried_and_can_be_redriven(tmp_path: Path) -> None:
    """With the reason; put back it starts anew, dropped it is gone. The owner hears of it before it happens."""
    async with nats_server(tmp_path) as nats, _queue(nats) as queue:
        heard: list[tuple[str, str]] = []

        async def hear(job_id: str, reason: str) -> None:
            heard.append((job_id, reason))
            if len(heard) == 1:
                raise BusError("not now")

        queue.on_dead(hear)
        await queue.put(Cancel(["a"]), "job/1 é".encode("ascii", "replace").decode())
        for _ in range(2):
            [delivery] = await queue.take(1, 10)
        async with asyncio.timeout(30):
            while not await queue.dead.list():
                assert await queue.take(1, 0.5) == []
        assert [reason for _, reason in heard] == ["taken 2 times and never finished"] * 2
        [letter] = await queue.dead.list()
        assert (letter.id, letter.reason, letter.lane) == ("job/1 ?", "taken 2 times and never finished", "all")
        assert letter.deliveries >= 3
        assert await queue.ask_state() == QueueState(0, 0, 0, 0)
        assert await queue.dead.redrive(letter.id)
        assert not await queue.dead.redrive(letter.id)
        [delivery] = await queue.take(1, 10)
        assert (delivery.id, delivery.delivery, delivery.message) == ("job/1 ?", 1, Cancel(["a"]))
        await delivery.reject("it is no good")
        assert [letter.reason for letter in await queue.dead.list()] == ["it is no good"]
        assert await queue.dead.drop(letter.id)
        assert not await queue.dead.drop(letter.id)
        assert await queue.dead.count() == 0


async def test_a_stranger_s_message_is_buried_not_delivered(tmp_path: Path) -> None:
    """It keeps nobody's job waiting, and can be looked at."""
    async with nats_server(tmp_path) as nats, _queue(nats) as queue, _bus(nats) as bus:
        await bus.publish(Subjects("g").queued("test", "all", "x"), Answered("no cancel"))
        await bus.flush()
        await queue.put(Cancel([]), "job-1")
        [delivery] = await queue.take(4, 10)
        assert delivery.id == "job-1"
        [letter] = await queue.dead.list()
        assert (letter.id, letter.reason[:19]) == ("number-1", "undecodable Cancel:")


async def test_a_full_queue_says_so(tmp_path: Path) -> None:
    """What does not fit is refused, by number and by bytes; room comes back when a job is done."""
    limits = QueueLimits(lease_s=60, max_jobs=2, max_bytes=100_000)
    async with nats_server(tmp_path) as nats, _queue(nats, limits) as queue, _bus(nats) as bus:
        await queue.put(Cancel([]), "job-1")
        with pytest.raises(QueueFullError, match="bytes"):
            await queue.put(Cancel(["x" * 200_000]), "job-2")
        await queue.put(Cancel([]), "job-3")
        with pytest.raises(QueueFullError, match="maximum messages"):
            await queue.put(Cancel([]), "job-4")
        [delivery, *_] = await queue.take(2, 5)
        await delivery.done()
        assert await queue.put(Cancel([]), "job-4")
        with pytest.raises(TooLongError):
            await queue.put(Cancel(["x" * bus.max_payload_bytes]), "job-5")
        for wrong in ("", " a", "é", "a\r\nb"):
            with pytest.raises(ValueError, match="printable"):
                await queue.put(Cancel([]), wrong)


async def test_lanes_have_takers_of_their_own(tmp_path: Path) -> None:
    """A job waits for a taker of its lane, for ever if need be; dead letters go back to their lane."""
    async with nats_server(tmp_path) as nats, _queue(nats, lane="a b") as one, _queue(nats, lane="c.d") as other:
        await other.put(Cancel([]), "job-1")
        assert await one.take(1, 0.2) == []
        assert (await one.ask_state()).waiting == 0
        assert (await other.ask_state()).waiting == 1
        [delivery] = await other.take(1, 5)
        await delivery.reject("no")
        assert await one.dead.redrive("job-1")
        assert [delivery.id for delivery in await other.take(1, 5)] == ["job-1"]


async def test_the_state_is_at_hand_without_asking(tmp_path: Path) -> None:
    """As fresh as the watch, with one's own puts counted at once; None when nobody knows any more."""
    async with RestartableNats(tmp_path) as nats, _queue(nats.settings) as queue:
        assert queue.recent_state is None
        watching = asyncio.create_task(queue.watch(0.05))
        async with asyncio.timeout(10):
            while queue.recent_state is None:
                await asyncio.sleep(0.01)
            await queue.put(Cancel([]), "job-1")
            assert queue.recent_state.waiting == 1
            await queue.take(1, 5)
            while queue.recent_state is None or queue.recent_state.under_way != 1:
                await asyncio.sleep(0.01)
            await nats.kill()
            while queue.recent_state is not None:
                await asyncio.sleep(0.01)
            await nats.start()
            while queue.recent_state is None:
                await asyncio.sleep(0.01)
        watching.cancel()


async def test_a_cancelled_take_loses_nothing(tmp_path: Path) -> None:
    """What came to it is with the next take."""
    async with nats_server(tmp_path) as nats, _queue(nats, QueueLimits(lease_s=60)) as queue:
        got: set[str] = set()
        for number in range(20):
            taking = asyncio.create_task(queue.take(2, 30))
            await asyncio.sleep(0.002 * (number % 3))
            await queue.put(Cancel([]), f"job-{number}")
            if not taking.cancel():
                got |= {delivery.id for delivery in taking.result()}
            await asyncio.gather(taking, return_exceptions=True)
        async with asyncio.timeout(20):
            while len(got) < 20 and (taken := await queue.take(5, 1)):
                got |= {delivery.id for delivery in taken}
        assert {f"job-{number}" for number in range(20)} - got == set()


async def test_a_killed_server_costs_no_job(tmp_path: Path) -> None:
    """Killed twice under load and started again: all that was put is done; what waits for a job hears of the next one."""
    count = 600
    limits = QueueLimits(lease_s=2.0, max_deliver=50)
    done: set[str] = set()
    async with (
        RestartableNats(tmp_path) as nats,
        _queue(nats.settings, limits) as putter,
        _queue(nats.settings, limits) as taker,
    ):

        async def put_all() -> None:
            for number in range(count):
                while True:
                    try:
                        await putter.put(Cancel([str(number)]), f"job-{number}")
                        break
                    except BusError:
                        await asyncio.sleep(0.05)

        async def do_all() -> None:
            while len(done) < count:
                await asyncio.gather(*[do(delivery) for delivery in await taker.take(8, 5)])

        async def do(delivery: Delivery[Cancel]) -> None:
            try:
                await delivery.done()
            except BusError:
                return
            done.add(delivery.id)

        async def kill_twice() -> None:
            for when in (count // 5, count // 2):
                while len(done) < when:
                    await asyncio.sleep(0.01)
                await nats.kill()
                with pytest.raises(JetStreamAwayError):
                    await putter.dead.count()
                await nats.start()

        async with asyncio.timeout(150), asyncio.TaskGroup() as tasks:
            tasks.create_task(put_all())
            tasks.create_task(do_all())
            tasks.create_task(kill_twice())
        assert len(done) == count
        while again := await taker.take(8, 3):  # what the server forgot when it was killed
            for delivery in again:
                await delivery.done()
        assert await taker.ask_state() == QueueState(0, 0, 0, 0)
        assert await taker.dead.count() == 0


async def test_a_server_that_comes_back_empty_gets_the_queue_anew(tmp_path: Path) -> None:
    """Somebody lost the disk; the queue works on."""
    async with RestartableNats(tmp_path) as nats, _queue(nats.settings) as queue:
        await queue.take(1, 0)
        taking = asyncio.create_task(queue.take(1, 30))
        await nats.kill()
        (tmp_path / "jetstream").rename(tmp_path / "lost")
        await nats.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    await queue.put(Cancel([]), "job-1")
                    break
                except BusError:
                    await asyncio.sleep(0.05)
            assert [delivery.id for delivery in await taking] == ["job-1"]


@asynccontextmanager
async def _bus(nats: Nats) -> AsyncIterator[Bus]:
    bus = await Bus.connect(nats, "test")
    try:
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def _queue(nats: Nats, limits: QueueLimits = QUICK, lane: str = "all") -> AsyncIterator[WorkQueue[Cancel]]:
    async with _bus(nats) as bus:
        queue = await WorkQueue.open(bus, Subjects("g"), "test", Cancel, limits, lane=lane, timeout_s=2.0)
        yield queue
        await queue.close()
