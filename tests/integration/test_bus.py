"""The bus on a real NATS server: what it carries, what it refuses, and what happens when the server goes away."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from components.bus.client import Bus, BusError, NoListenerError, NoReplyError, TooLongError
from components.bus.member import Member, Nothing
from components.bus.server import NatsServerPlan
from components.graph.schema import Nats
from components.wire.errors import ErrorCode, InvalidRequestError, OverloadedError, PenstockError
from components.wire.messages import Cancel, Message
from components.wire.process import MetricsReply, ProcessState, ProcessStatus
from components.wire.subjects import Subjects
from tests.support.answers import Answered
from tests.support.nats import nats_server


async def test_request_and_reply(tmp_path: Path) -> None:
    """An answer comes back typed; an error comes back as the exception it was."""
    async with nats_server(tmp_path) as nats, _two(nats) as (asks, answers):

        async def answer(cancel: Cancel) -> Message:
            if not cancel.request_ids:
                raise OverloadedError("too many", param="n", retry_after_s=2.0)
            return Answered(cancel.request_ids[0])

        await answers.serve("ask", Cancel, answer)
        await answers.flush()
        assert await asks.request("ask", Cancel(["a"]), Answered, 1) == Answered("a")
        with pytest.raises(OverloadedError, match="too many") as error:
            await asks.request("ask", Cancel([]), Answered, 1)
        assert (error.value.param, error.value.retry_after_s) == ("n", 2.0)


async def test_nobody_there_and_nobody_answering_are_told_apart(tmp_path: Path) -> None:
    """No listener is known at once, a silent one only after the wait."""
    async with nats_server(tmp_path) as nats, _two(nats) as (asks, answers):
        with pytest.raises(NoListenerError):
            await asks.request("nobody", Cancel([]), Answered, 30)

        async def sleep(_: Cancel) -> None:
            await asyncio.sleep(10)

        await answers.serve("silent", Cancel, sleep)
        await answers.flush()
        with pytest.raises(NoReplyError):
            await asks.request("silent", Cancel([]), Answered, 0.1)


async def test_undecodable_messages_are_counted_and_dropped(tmp_path: Path) -> None:
    """Garbage neither ends a subscription nor reaches the callback; a request with garbage is answered with an error."""
    async with nats_server(tmp_path) as nats, _two(nats) as (sends, gets):
        heard: list[Cancel] = []

        async def hear(cancel: Cancel) -> None:
            heard.append(cancel)

        await gets.subscribe("listen", Cancel, hear)
        await gets.serve("ask", Cancel, _accept)
        await gets.flush()
        await sends.publish("listen", Answered("no cancel"))
        await sends.publish("listen", Cancel(["yes"]))
        with pytest.raises(InvalidRequestError, match="undecodable Cancel"):
            await sends.request("ask", Answered("no cancel"), Answered, 1)
        async with asyncio.timeout(5):
            while not heard:  # subscriptions do not wait for one another
                await asyncio.sleep(0.01)
        assert heard == [Cancel(["yes"])]
        assert gets.undecodable_messages == 2


async def test_too_long_a_message_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    """The server would cut the connection; the sender gets an error with both sizes; only a request blames a client."""
    async with nats_server(tmp_path) as nats, _two(nats) as (bus, other):
        too_long = Cancel(["a" * bus.max_payload_bytes])
        with pytest.raises(TooLongError, match=str(bus.max_payload_bytes)):
            await bus.publish("x", too_long)
        with pytest.raises(InvalidRequestError, match=str(bus.max_payload_bytes)):
            await bus.request("x", too_long, Answered, 1)

        async def answer(_: Cancel) -> Answered:
            return Answered("a" * bus.max_payload_bytes)

        await other.serve("long", Cancel, answer)
        await other.flush()
        with pytest.raises(PenstockError, match="the answer takes"):
            await bus.request("long", Cancel([]), Answered, 1)
        assert not other.failure


async def test_a_bug_in_a_callback_is_the_end_of_the_bus(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that answers costs one request; one that only hears ends the bus. Nobody sees the exception's text."""
    async with nats_server(tmp_path) as nats, _two(nats) as (asks, answers), _two(nats) as (hears, offers):

        async def buggy(cancel: Cancel) -> None:
            raise IndexError(cancel.request_ids)

        await answers.serve("ask", Cancel, buggy)
        await offers.offer("service", "queue", "offered", Cancel, buggy)
        await hears.subscribe("hear", Cancel, buggy)
        for bus in (answers, offers, hears):
            await bus.flush()
            assert not bus.failure
        for subject in ("ask", "offered"):
            with pytest.raises(PenstockError, match="failed to answer") as error:
                await asks.request(subject, Cancel(["secret"]), Answered, 1)
            assert error.value.code is ErrorCode.INTERNAL
        await asks.publish("hear", Cancel(["secret"]))
        reason = await asyncio.wait_for(hears.failed(), 2)
        assert reason == hears.failure
        assert re.fullmatch(r"a bug in a callback: IndexError at answering\.py.* > test_bus\.py:\d+ buggy", reason)
        assert not answers.failure
        assert not offers.failure
        assert "secret" not in str([record.__dict__ for record in caplog.records])


async def test_what_a_process_offers_it_asks_without_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The very message goes to its own service and comes back; so do errors. After its end another one's turn comes."""
    async with nats_server(tmp_path) as nats, _two(nats) as (here, there):
        asked: list[Cancel] = []

        async def answer(cancel: Cancel) -> Message:
            asked.append(cancel)
            if not cancel.request_ids:
                raise OverloadedError("too many", retry_after_s=2.0)
            if cancel.request_ids == ["secret"]:
                raise IndexError(cancel.request_ids)
            return Answered("here")

        async def answer_there(_: Cancel) -> Message:
            return Answered("there")

        await there.offer("service", "queue", "offered", Cancel, answer_there)
        stop = await here.offer("service", "queue", "offered", Cancel, answer)
        await there.flush()
        message = Cancel(["a"])
        for _ in range(20):
            assert await here.request("offered", message, Answered, 1) == Answered("here")
        assert all(each is message for each in asked)
        with pytest.raises(OverloadedError, match="too many"):
            await here.request("offered", Cancel([]), Answered, 1)
        with pytest.raises(PenstockError, match="failed to answer") as error:
            await here.request("offered", Cancel(["secret"]), Answered, 1)
        assert error.value.code is ErrorCode.INTERNAL
        assert "secret" not in str([record.__dict__ for record in caplog.records])
        await stop()
        assert await here.request("offered", message, Answered, 1) == Answered("there")
        assert not here.failure


async def test_a_submitted_request_is_answered_only_when_it_is_refused(tmp_path: Path) -> None:
    """By its service, or because nobody listens; once, and not after it was forgotten. What is too long is not sent."""
    async with nats_server(tmp_path, max_payload_bytes=2048) as nats, _two(nats) as (asks, answers):
        heard: list[Cancel] = []

        async def answer(cancel: Cancel) -> Message | None:
            heard.append(cancel)
            if cancel.request_ids != ["good"]:
                raise OverloadedError("too many", retry_after_s=2.0)
            return Answered("w")

        await answers.serve("work", Cancel, answer, only_refusals=True)
        await answers.flush()
        refusals: asyncio.Queue[Exception] = asyncio.Queue()
        await asks.submit("work", Cancel(["good"]), refusals.put_nowait)
        forget = await asks.submit("work", Cancel(["forgotten"]), refusals.put_nowait)
        forget()
        await asks.submit("work", Cancel(["bad"]), refusals.put_nowait)
        refusal = await asyncio.wait_for(refusals.get(), 2)
        assert isinstance(refusal, OverloadedError)
        assert refusal.retry_after_s == 2.0
        assert [cancel.request_ids for cancel in heard] == [["good"], ["forgotten"], ["bad"]]
        await asks.submit("nobody", Cancel(["x"]), refusals.put_nowait)
        assert isinstance(await asyncio.wait_for(refusals.get(), 2), NoListenerError)
        with pytest.raises(InvalidRequestError, match="too long"):
            await asks.submit("work", Cancel(["x" * 3000]), refusals.put_nowait)
        assert refusals.empty()


async def test_after_a_flush_the_server_knows_what_was_subscribed(tmp_path: Path) -> None:
    """What another connection sends from then on arrives."""
    async with nats_server(tmp_path) as nats, _two(nats) as (sends, hears):
        heard: asyncio.Queue[Cancel] = asyncio.Queue()
        for number in range(1000):
            await hears.subscribe(f"hear.{number}", Cancel, heard.put)
            await hears.publish("aside", Nothing())
            await hears.flush()
            await sends.publish(f"hear.{number}", Cancel([str(number)]))
            assert await asyncio.wait_for(heard.get(), 2) == Cancel([str(number)])


async def test_a_callback_that_cannot_send_is_no_bug(tmp_path: Path) -> None:
    """NATS may be away for a moment, or take less than we want to say."""
    async with nats_server(tmp_path) as nats, _two(nats) as (sends, hears):
        called = asyncio.Event()

        async def too_long(_: Cancel) -> None:
            called.set()
            await hears.publish("x", Cancel(["a" * hears.max_payload_bytes]))

        await hears.subscribe("hear", Cancel, too_long)
        await hears.flush()
        await sends.publish("hear", Cancel([]))
        await asyncio.wait_for(called.wait(), 2)
        await asyncio.sleep(0.05)
        assert not hears.failure


async def test_a_bug_in_a_callback_ends_its_process(tmp_path: Path) -> None:
    """Loudly: the status says failed and why, the exit code is 1."""
    async with nats_server(tmp_path) as nats, _two(nats) as (bus, _):
        heard: asyncio.Queue[ProcessStatus] = asyncio.Queue()
        await bus.subscribe(Subjects("stub").every_status(), ProcessStatus, heard.put)
        await bus.flush()
        process = await _start_stub(nats, tmp_path, "has a bug")
        async with asyncio.timeout(20):
            while (await heard.get()).state is not ProcessState.READY:
                pass
            await bus.publish("bug", Nothing())
            while (status := await heard.get()).state is not ProcessState.FAILED:
                pass
            assert await process.wait() == 1
        assert "a bug in a callback: IndexError" in status.detail
        assert "secret" not in (tmp_path / "stub.log").read_text()


async def test_gather_returns_what_comes_in_time(tmp_path: Path) -> None:
    """Two of two answer at once; with a third expected the wait ends by itself."""
    async with nats_server(tmp_path) as nats, _two(nats) as (one, other):
        await one.serve("all", Cancel, _accept)
        await other.serve("all", Cancel, _accept)
        await one.flush()
        await other.flush()
        assert len(await one.gather("all", Cancel([]), Answered, wait_s=5, expected=2)) == 2
        assert len(await one.gather("all", Cancel([]), Answered, wait_s=0.2, expected=3)) == 2


async def test_a_restarted_server_is_found_again(tmp_path: Path) -> None:
    """Subscriptions survive, `on_reconnect` is called, and messages flow again within a second or two."""
    plan = NatsServerPlan(tmp_path, "test", port=None)
    plan.write()
    os.environ.update(plan.environment)
    server = await _start(plan, tmp_path)
    nats = await plan.settings(server.pid)
    async with _two(nats) as (asks, answers):
        back = asyncio.Event()

        async def note() -> None:
            back.set()

        asks.on_reconnect(note)
        await answers.serve("ask", Cancel, _accept)
        await answers.flush()
        server.send_signal(signal.SIGKILL)
        await server.wait()
        again = NatsServerPlan(tmp_path, "test", int(nats.url.rsplit(":", 1)[1]), plan.environment["PENSTOCK_NATS_TOKEN"])
        again.write()
        server = await _start(again, tmp_path)
        async with asyncio.timeout(10):
            await back.wait()
            while True:
                try:
                    assert await asks.request("ask", Cancel([]), Answered, 1) == Answered("w")
                    break
                except BusError:
                    await asyncio.sleep(0.05)
    server.terminate()
    await server.wait()
    del os.environ["PENSTOCK_NATS_TOKEN"]


async def test_a_wrong_token_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded server lets nobody in without its token."""
    async with nats_server(tmp_path) as nats:
        monkeypatch.setenv("PENSTOCK_NATS_TOKEN", "wrong")
        with pytest.raises(BusError, match=re.escape(nats.url)):
            await Bus.connect(nats, "stranger", wait_s=1)


async def test_no_server_is_one_clear_error() -> None:
    """The URL and the wait are bounded."""
    with pytest.raises(BusError, match=r"nats://127\.0\.0\.1:1"):
        await Bus.connect(Nats(url="nats://127.0.0.1:1"), "x", wait_s=0.5)


async def test_a_member_tells_its_status_and_metrics(tmp_path: Path) -> None:
    """Others hear of a change at once, can ask for status and metrics, and can ask it to stop."""
    async with nats_server(tmp_path) as nats, _two(nats) as (mine, theirs):
        subjects = Subjects("g")
        heard: asyncio.Queue[ProcessStatus] = asyncio.Queue()
        await theirs.subscribe(subjects.every_status(), ProcessStatus, heard.put)
        await theirs.flush()
        member = Member(mine, subjects, "decode-0", "decode")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(member.run())
            assert (await asyncio.wait_for(heard.get(), 2)).state is ProcessState.STARTING
            member.become(ProcessState.READY, "serving")
            status = await asyncio.wait_for(heard.get(), 0.5)
            assert (status.name, status.state, status.detail, status.pid) == ("decode-0", "ready", "serving", os.getpid())
            await theirs.publish(subjects.ask_status(), Nothing())
            assert (await asyncio.wait_for(heard.get(), 0.5)).incarnation == member.incarnation
            [reply] = await theirs.gather(subjects.scrape(), Nothing(), MetricsReply, wait_s=2, expected=1)
            assert reply.process == "decode-0"
            running.cancel()


async def _accept(_: Cancel) -> Answered:
    return Answered("w")


async def _start_stub(nats: Nats, folder: Path, behaviour: str) -> asyncio.subprocess.Process:
    """Start `tests.support.stub_component` as a process of the graph `stub`."""
    graph = folder / "stub.yaml"
    graph.write_text(f"name: stub\nmodel: demo\nnats: {nats.url}\ncomponents: {{decode: {{}}}}\n")
    argv = [sys.executable, "-m", "tests.support.stub_component", "--graph", str(graph), "--name", "stub-0"]
    with (folder / "stub.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(*argv, env={**os.environ, "STUB": behaviour}, stdout=log, stderr=log)


async def _start(plan: NatsServerPlan, folder: Path) -> asyncio.subprocess.Process:
    with (folder / "log").open("ab") as log:
        return await asyncio.create_subprocess_exec(*plan.argv, stdout=log, stderr=log)


class _two:  # noqa: N801 reads as a word in `async with`
    """Two connections to one server."""

    def __init__(self, nats: Nats) -> None:
        self._nats = nats

    async def __aenter__(self) -> tuple[Bus, Bus]:
        self._buses = (await Bus.connect(self._nats, "one"), await Bus.connect(self._nats, "other"))
        return self._buses

    async def __aexit__(self, *_: object) -> None:
        for bus in self._buses:
            await bus.close()
