"""The decode worker's life of a request, on a real NATS server with the simulated engine."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from components.bus.client import Bus
from components.decode.outbox import ACKNOWLEDGE_S, Outbox
from components.decode.service import DecodeService
from components.engine.protocol import EngineOutput
from components.engine.sim import SimEngine
from components.graph.schema import SimEngine as SimSettings
from components.wire.errors import (
    CancelledError,
    ErrorCode,
    InvalidRequestError,
    ModelNotFoundError,
    NoWorkerError,
)
from components.wire.messages import Cancel, FinishReason, GenerateRequest, Sampling, TokenBatch, TokenDelta
from components.wire.subjects import Subjects
from tests.support.nats import nats_server

SUBJECTS = Subjects("test")


@dataclass
class Worker:
    """A worker under test and what a processor hears from it."""

    service: DecodeService
    engine: SimEngine
    bus: Bus
    outbox: Outbox
    batches: list[TokenBatch] = field(default_factory=list)

    async def ask(self, request_id: str, max_tokens: int = 8, model: str = "demo", deadline_s: float = 30) -> None:
        """Send a request as a processor does, and wait until it is taken in, or raise why it is not."""
        request = GenerateRequest(
            request_id, "p", model, list(range(10, 110)), Sampling(max_tokens=max_tokens), time.time() + deadline_s
        )
        heard = len(self.deltas(request_id))
        refusals: list[Exception] = []
        forget = await self.bus.submit(SUBJECTS.generate("w"), request, refusals.append)
        async with asyncio.timeout(2):
            while not refusals and len(self.deltas(request_id)) == heard:
                await asyncio.sleep(0.001)
        forget()
        if refusals:
            raise refusals[0]

    def deltas(self, request_id: str) -> list[TokenDelta]:
        """Return everything heard about one request so far."""
        return [delta for batch in self.batches for delta in batch.deltas if delta.request_id == request_id]

    async def end_of(self, request_id: str) -> TokenDelta:
        """Wait for the last delta of a request."""
        async with asyncio.timeout(10):
            while True:
                for delta in self.deltas(request_id):
                    if delta.finish_reason or delta.error:
                        return delta
                await asyncio.sleep(0.01)


@asynccontextmanager
async def worker(folder: Path, speed: float = 10.0, max_payload_bytes: int | None = None) -> AsyncIterator[Worker]:
    """Run one worker named `w` with a simulated engine, on a server that takes messages of so many bytes."""
    engine = SimEngine("demo", SimSettings(speed=speed), block_size=32)
    info = await engine.start(lambda _: None)
    async with nats_server(folder, max_payload_bytes) as nats:
        theirs, ours = await Bus.connect(nats, "w"), await Bus.connect(nats, "p")
        try:
            async with asyncio.TaskGroup() as tasks:
                outbox = Outbox(theirs, SUBJECTS, "w", "life-1")
                service = DecodeService("w", "demo", engine, info, outbox, tasks)
                works = (outbox.run(), outbox.acknowledge(), outbox.keep_alive())
                background = [tasks.create_task(work) for work in works]
                await service.listen(theirs, SUBJECTS)
                under_test = Worker(service, engine, ours, outbox)

                async def hear(batch: TokenBatch) -> None:
                    under_test.batches.append(batch)

                await ours.subscribe(SUBJECTS.tokens("p"), TokenBatch, hear)
                await ours.flush()
                yield under_test
                for task in background:
                    task.cancel()
        finally:
            await engine.stop()
            await theirs.close()
            await ours.close()


async def test_tokens_arrive_in_order_and_numbered(tmp_path: Path) -> None:
    """Offsets count the tokens, batches count themselves, the last delta says why it ended."""
    async with worker(tmp_path) as under_test:
        await under_test.ask("r", max_tokens=20)
        last = await under_test.end_of("r")
        deltas = under_test.deltas("r")
        assert last.finish_reason is FinishReason.LENGTH
        assert sum(len(delta.token_ids) for delta in deltas) == 20
        assert [d.offset for d in deltas] == [sum(len(e.token_ids) for e in deltas[:i]) for i, _ in enumerate(deltas)]
        assert deltas[0].cached_tokens == 0
        assert [batch.seq for batch in under_test.batches if batch.deltas] == list(range(len(under_test.batches)))
        assert {batch.incarnation for batch in under_test.batches} == {"life-1"}


async def test_what_is_slow_to_begin_is_acknowledged_once(tmp_path: Path) -> None:
    """An empty delta says that a request was taken in, unless tokens, a refusal or its end come first."""
    async with worker(tmp_path) as under_test:
        under_test.outbox.owe("p", "fast")
        under_test.outbox.add("p", TokenDelta("fast", 0, [7]))
        under_test.engine.freeze()
        await under_test.ask("slow")
        under_test.outbox.owe("p", "left")
        under_test.outbox.forgive("p", "left")
        assert under_test.deltas("slow") == [TokenDelta("slow")]
        under_test.engine.thaw()
        await under_test.end_of("slow")
        assert all(delta.token_ids for delta in under_test.deltas("slow")[1:])
        with pytest.raises(ModelNotFoundError):
            await under_test.ask("other", model="other")
        await asyncio.sleep(2 * ACKNOWLEDGE_S)
        assert under_test.deltas("other") == []
        assert under_test.deltas("fast") == [TokenDelta("fast", 0, [7])]
        assert under_test.deltas("left") == []


async def test_one_message_carries_the_tokens_of_many_requests(tmp_path: Path) -> None:
    """Twenty requests that run together share their batches."""
    async with worker(tmp_path, speed=1.0) as under_test:
        await asyncio.gather(*(under_test.ask(f"r{i}", max_tokens=10) for i in range(20)))
        for i in range(20):
            await under_test.end_of(f"r{i}")
        with_tokens = [batch for batch in under_test.batches if batch.deltas]
        assert sum(len(batch.deltas) for batch in with_tokens) > 4 * len(with_tokens)


async def test_a_cancelled_request_leaves_the_engine(tmp_path: Path) -> None:
    """Its slot is free at once, and nothing more is heard of it."""
    async with worker(tmp_path, speed=1.0) as under_test:
        await under_test.ask("r", max_tokens=4000)
        while not under_test.deltas("r"):
            await asyncio.sleep(0.01)
        await under_test.bus.publish(SUBJECTS.cancel("w"), Cancel(["r"]))
        async with asyncio.timeout(2):
            while under_test.service.status().load.running_requests:
                await asyncio.sleep(0.01)
        heard = len(under_test.deltas("r"))
        await asyncio.sleep(0.1)
        assert len(under_test.deltas("r")) == heard


async def test_a_cancellation_may_overtake_its_request(tmp_path: Path) -> None:
    """The request is refused when it comes; the next one with that id is not."""
    async with worker(tmp_path) as under_test:
        await under_test.service.cancel(Cancel(["early"]))
        with pytest.raises(CancelledError):
            await under_test.ask("early")
        await under_test.ask("early")
        await under_test.end_of("early")


async def test_what_cannot_be_served_is_refused_at_once(tmp_path: Path) -> None:
    """Another model, a request id in use."""
    async with worker(tmp_path, speed=1.0) as under_test:
        with pytest.raises(ModelNotFoundError, match="other"):
            await under_test.ask("r", model="other")
        await under_test.ask("r", max_tokens=1000)
        with pytest.raises(InvalidRequestError, match="in use"):
            await under_test.ask("r")
        await under_test.service.drain(0.01)


async def test_a_passed_deadline_ends_the_request(tmp_path: Path) -> None:
    """Nobody waits any more, so the engine stops."""
    async with worker(tmp_path, speed=1.0) as under_test:
        await under_test.ask("r", max_tokens=4000, deadline_s=0.3)
        last = await under_test.end_of("r")
        assert last.error is not None
        assert last.error.code is ErrorCode.DEADLINE_EXCEEDED
        assert under_test.service.status().load.running_requests == 0


async def test_a_bug_in_the_engine_costs_one_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its client hears of an internal error, its neighbour finishes, the worker lives, and the log tells no prompt."""
    async with worker(tmp_path, speed=1.0) as under_test:
        generate = under_test.engine.generate

        async def breaks(request: GenerateRequest) -> AsyncIterator[EngineOutput]:
            async for output in generate(request):
                yield output
                if request.request_id == "bad":
                    raise IndexError("the secret prompt")

        under_test.engine.generate = breaks  # type: ignore[method-assign]
        await under_test.ask("good", max_tokens=20)
        await under_test.ask("bad", max_tokens=20)
        bad = await under_test.end_of("bad")
        assert bad.error is not None
        assert (bad.error.code, "secret" in bad.error.message) == (ErrorCode.INTERNAL, False)
        assert (await under_test.end_of("good")).finish_reason is FinishReason.LENGTH
        await under_test.ask("later")
        await under_test.end_of("later")
    (record,) = [record for record in caplog.records if record.name == "components.decode.service"]
    assert "IndexError" in str(record.__dict__)
    assert "secret" not in str(record.__dict__)


async def test_draining_finishes_what_it_can_and_gives_back_the_rest(tmp_path: Path) -> None:
    """A short request ends well, a long one is told to go elsewhere, a new one is refused."""
    async with worker(tmp_path, speed=1.0) as under_test:
        await under_test.ask("short", max_tokens=5)
        await under_test.ask("long", max_tokens=4000)
        draining = asyncio.create_task(under_test.service.drain(1.0))
        await asyncio.sleep(0.1)
        with pytest.raises(NoWorkerError):
            await under_test.ask("new")
        await draining
        assert (await under_test.end_of("short")).finish_reason is FinishReason.LENGTH
        long = await under_test.end_of("long")
        assert long.error is not None
        assert long.error.code is ErrorCode.WORKER_LOST


async def test_the_last_number_is_repeated_while_idle(tmp_path: Path) -> None:
    """A processor that missed the last batch notices within about a second."""
    async with worker(tmp_path) as under_test:
        await under_test.ask("r")
        await under_test.end_of("r")
        last = max(batch.seq for batch in under_test.batches)
        async with asyncio.timeout(3):
            while under_test.batches[-1].deltas:
                await asyncio.sleep(0.05)
        assert under_test.batches[-1].seq == last


async def test_more_tokens_than_one_message_holds_come_in_several(tmp_path: Path) -> None:
    """Their numbers go on; output that no message holds ends its own request only."""
    async with worker(tmp_path, max_payload_bytes=2048) as under_test:
        for number in range(20):
            under_test.outbox.add("p", TokenDelta(f"r{number}", text="x" * 500))
        under_test.outbox.add("p", TokenDelta("long", 7, text="x" * 5000))
        under_test.outbox.add("p", TokenDelta("after", finish_reason=FinishReason.STOP))
        await under_test.end_of("after")
        assert all(under_test.deltas(f"r{number}")[0].text == "x" * 500 for number in range(20))
        assert [batch.seq for batch in under_test.batches] == list(range(len(under_test.batches)))
        assert len(under_test.batches) > 5
        (long,) = under_test.deltas("long")
        assert long.offset == 7
        assert long.error is not None
        assert long.error.code is ErrorCode.INTERNAL
        await under_test.ask("r")
        assert (await under_test.end_of("r")).finish_reason is FinishReason.LENGTH
