"""The engines of several GPUs, all started at once, and the routers that take turns before them."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import uvloop

from benchmarks.gpu.host import Host
from benchmarks.gpu.load import Request, open_loop
from benchmarks.gpu.process import Command, Running, await_ready, started, stop_all
from benchmarks.gpu.sizes import Size
from benchmarks.gpu.stand import Fleet, disaggregated, nats_server, peer, vllm_server
from benchmarks.gpu.traffic import Writer

OURS = ("kv", "round_robin")
"""penstock's policies that are measured."""
Kind = Literal["fleet", "servers", "disagg"]
"""Workers without a router; vLLM's own servers; a whole graph with prefill workers."""

_ROUTER_START_S = 60.0


@dataclass
class Stand:
    """What runs.

    Attributes:
        host: the machine.
        size: of the measurement.
        writer: of the prompts.
        logs: a folder.
        peers: the folder that holds the peers.
        start_s: longest wait for engines.
        fleet: penstock in parts.
        servers: vLLM's own: URL → where it tells of its KV blocks.
        disagg_url: of the graph with prefill workers.
        ready_s: how long each program took to be ready.
    """

    host: Host
    size: Size
    writer: Writer
    logs: Path
    peers: Path | None
    start_s: float
    fleet: Fleet | None = None
    servers: dict[str, str] = field(default_factory=dict)
    disagg_url: str = ""
    ready_s: dict[str, float] = field(default_factory=dict)


@contextmanager
def engines(stand: Stand, count: int, kinds: Sequence[Kind]) -> Iterator[dict[Kind, str]]:
    """Run engines of these kinds, started at once, one of each kind a device, and warm them; yields what failed, and why."""
    with ExitStack() as stack:
        commands = {kind: _commands(stand, count, kind, stack) for kind in kinds}
        runnings: dict[Kind, list[Running]] = {kind: [] for kind in kinds}
        stack.callback(lambda: stop_all([running for each in runnings.values() for running in each]))
        for kind, each in commands.items():
            for command in each:
                runnings[kind] += [Running(command, stand.logs)]
        end = time.monotonic() + stand.start_s
        failed: dict[Kind, str] = {}
        for kind, started_ones in runnings.items():
            try:
                await_ready(started_ones, max(0.0, end - time.monotonic()))
            except (RuntimeError, TimeoutError) as error:
                failed[kind] = f"its engines do not start: {error}"[-2500:]
            stand.ready_s |= {running.command.name: round(running.ready_s, 1) for running in started_ones}
        uvloop.run(_warm(stand, [kind for kind in kinds if kind not in failed]))
        yield failed


def _commands(stand: Stand, count: int, kind: Kind, stack: ExitStack) -> list[Command]:
    """Return what to start for a kind; what must be up before is entered into `stack`."""
    if kind == "fleet":
        url, token = stack.enter_context(nats_server(stand.logs / "nats"))
        stand.fleet = Fleet(stand.host, count, stand.logs, url, **token)
        return [stand.fleet.workers()]
    if kind == "servers":
        made = [vllm_server(stand.host, index, count, events=True) for index in range(count)]
        stand.servers = {command.url: events for command, events in made}
        return [command for command, _ in made]
    half = max(count // 2, 1)
    command, stand.disagg_url = disaggregated(stand.host, half, half, stand.logs, stand.size.l1_gib * half)
    return [command]


async def _warm(stand: Stand, kinds: Sequence[Kind]) -> None:
    """Have every engine compute prompts of all lengths, so that nobody's first measured request compiles a kernel."""
    urls = {"fleet": [stand.fleet.url] if stand.fleet else [], "servers": list(stand.servers), "disagg": [stand.disagg_url]}
    requests = [request for n in range(2) for request in warm_up(stand.writer.salted(f"first {n}"), stand.size)]
    await asyncio.gather(*(open_loop(url, requests, 2 * stand.size.window_s) for kind in kinds for url in urls[kind]))


def warm_up(writer: Writer, size: Size) -> list[Request]:
    """Return some requests of all lengths, which teach a router the engines' speed and an engine its kernels."""
    lengths = [size.longest // part for part in (20, 10, 8, 4, 4, 2, 2, 2)]
    return [Request(0.1 * n, writer.text(f"warm {n}", tokens), 4, "warm") for n, tokens in enumerate(lengths)]


@dataclass(frozen=True)
class Front:
    """Where requests go, and who tells what became of them.

    Attributes:
        url: of the endpoint.
        engines: URLs of the engines' counters.
        router: URL of a peer's own metrics.
    """

    url: str
    engines: list[str]
    router: str = ""


@contextmanager
def router(stand: Stand, name: str) -> Iterator[Front]:
    """Run one router before engines that are up."""
    if name in OURS:
        assert stand.fleet is not None
        command = stand.fleet.router(name)
        front = Front(stand.fleet.url, [stand.fleet.url])
    else:
        command = peer(name, stand.servers, stand.peers)
        front = Front(command.url, list(stand.servers), command.metrics_url)
    with started([command], stand.logs, _ROUTER_START_S):
        yield front
