"""One graph in two parts, as on two machines: two supervisors, each with its state folder, and one NATS server between."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import openai
import pytest

from components.graph.schema import Nats
from tests.support.launched import Launched, free_port
from tests.support.nats import nats_server

GRAPH = "graphs/multi_host.yaml"
SIM = "decode.engine={kind: sim, timing: h200-8b, max_model_len: 4096}"
NO_EDGE = ("processor.replicas=0", "router.replicas=0")


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """The NATS server that the machines share."""
    async with nats_server(tmp_path / "nats") as settings:
        yield settings


@pytest.fixture
def machines() -> Iterator[ExitStack]:
    """Stops what was started, in the end."""
    with ExitStack() as stack:
        yield stack


def start(machines: ExitStack, nats: Nats, folder: Path, host: str, *settings: str) -> Launched:
    """Start the part of the graph that machine `host` runs, with the state in `folder`."""
    folder.mkdir()
    port = free_port()
    common = ("model=demo", "served_model_name=demo", f"nats={nats.url}", f"host={host}", "decode.replicas=1", SIM)
    ports = (f"http.port={port}", f"router.http_port={free_port()}")
    words = [word for setting in (*common, *ports, *settings) for word in ("--set", setting)]
    part = Launched(folder, f"multi_host-{host}", port, "up", GRAPH, *words)
    machines.callback(part.close)
    return part


class Traffic:
    """A few clients that ask all the time.

    Attributes:
        seen: the worker of each answer, and when its first byte came.
        failures: what went wrong.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[float, str]] = []
        self.failures: list[str] = []

    async def ask_for_ever(self, client: openai.AsyncOpenAI, number: int) -> None:
        """Ask again and again, each time with a prompt of its own, and read every answer to its end."""
        turn = 0
        while True:
            turn += 1
            messages = [{"role": "user", "content": f"client {number} turn {turn} " + "and so on " * 20}]
            try:
                answer = await client.chat.completions.with_raw_response.create(
                    model="demo",
                    messages=messages,  # type: ignore[arg-type]  # the client's types are for literals
                    max_tokens=24,
                    extra_body={"ignore_eos": True},
                )
                usage = answer.parse().usage
                assert usage is not None
                assert usage.completion_tokens == 24
            except (openai.APIError, AssertionError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                continue
            self.seen.append((time.monotonic(), answer.headers["x-penstock-worker"]))

    def workers_since(self, since_s: float) -> Counter[str]:
        """Return how many answers came from each worker since then."""
        return Counter(worker for at_s, worker in self.seen if at_s >= since_s)


@asynccontextmanager
async def traffic(part: Launched, clients: int = 6) -> AsyncIterator[Traffic]:
    """Keep `clients` asking at the endpoint of `part`."""
    made = Traffic()
    async with openai.AsyncOpenAI(base_url=f"{part.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        tasks = [asyncio.create_task(made.ask_for_ever(client, number)) for number in range(clients)]
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_machine_joins_and_leaves_under_load(nats: Nats, machines: ExitStack, tmp_path: Path) -> None:
    """Its worker gets requests within two seconds of being ready, none after it was told to go, and none fails."""
    a = start(machines, nats, tmp_path / "a", "a")
    await asyncio.to_thread(a.wait_ready, 60)
    async with traffic(a) as load:
        await asyncio.sleep(2)
        assert set(load.workers_since(0)) == {"decode-a-0"}
        b = start(machines, nats, tmp_path / "b", "b", *NO_EDGE)
        await asyncio.to_thread(b.wait_ready, 60)
        assert {row.process for row in (await asyncio.to_thread(b.ps))[0].processes} == {"decode-b-0"}
        assert "requests come through the processors of other machines" in b.output
        joined_s = time.monotonic()
        await asyncio.sleep(2)
        assert set(load.workers_since(joined_s)) == {"decode-a-0", "decode-b-0"}
        assert await asyncio.to_thread(b.row, "decode-b-0")
        left = await asyncio.to_thread(b.run, "down", "multi_host-b", timeout_s=30)
        assert left.returncode == 0, left.stderr
        gone_s = time.monotonic()
        await asyncio.sleep(2)
        assert set(load.workers_since(gone_s)) == {"decode-a-0"}
    assert load.failures == []
    assert len(load.seen) > 50


async def test_an_edge_without_workers_and_a_machine_of_workers(nats: Nats, machines: ExitStack, tmp_path: Path) -> None:
    """Processors and router here, workers there; the router trusts what it hears of their KV."""
    workers = start(machines, nats, tmp_path / "b", "b", *NO_EDGE, "decode.replicas=2")
    edge = start(machines, nats, tmp_path / "a", "a", "decode.replicas=0", "processor.replicas=1")
    for part in (workers, edge):
        await asyncio.to_thread(part.wait_ready, 60)
    async with traffic(edge, clients=2) as load:
        await asyncio.sleep(2)
    assert load.failures == []
    assert set(load.workers_since(0)) == {"decode-b-0", "decode-b-1"}
    listed = await asyncio.to_thread(edge.run, "router", "workers", "--json")
    assert listed.stdout.count('"trust": "exact"') == 2, listed.stdout
    elsewhere = await asyncio.to_thread(workers.run, "router", "workers")
    assert elsewhere.returncode == 1
    assert "runs no router" in elsewhere.stderr


async def test_a_second_machine_of_the_same_name_is_refused(nats: Nats, machines: ExitStack, tmp_path: Path) -> None:
    """It ends with the name, and who has it; the first one's requests do not notice."""
    a = start(machines, nats, tmp_path / "a", "a")
    await asyncio.to_thread(a.wait_ready, 60)
    async with traffic(a) as load:
        twin = start(machines, nats, tmp_path / "twin", "a", *NO_EDGE)
        assert await asyncio.to_thread(twin.program.wait, 60) == 1
        pid = next(process.pid for process in a.state.processes if process.name == "decode-a-0")
        assert f"pid {pid}; give each machine's part of the graph a `host` label of its own" in twin.output
        assert "name decode-a-0 is taken by host" in twin.output
        await asyncio.sleep(1)
    assert load.failures == []
    assert a.row("decode-a-0").restarts == 0
    lost = await asyncio.to_thread(a.run, "logs", "multi_host-a", "processor-a-0")
    assert "a worker is gone" not in lost.stdout
