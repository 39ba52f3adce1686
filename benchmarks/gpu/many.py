"""Several GPUs, one engine each: whose routing is better, and what prefill workers are good for.

    python -m benchmarks.gpu.many --gpus 2 --model /tmp/m8b --trace SLICE.jsonl --peers PEERS --minutes 3 --out DIR
    python -m benchmarks.gpu.many --gpus 4 …

Routing: conversations out of a trace, replayed within a window at rising load, cold caches each time: penstock's kv policy
and round robin on the same workers (only the router is exchanged), the peers' routers before vLLM's own servers, one engine
of each kind a GPU. Disaggregation: short chats and long prompts at random, on all workers of that fleet, and on half of the
engines with the other half as prefill workers. A piece that no longer fits into `--minutes` is left out; the order is that
of the list in `plan`: the second load with all policies, disaggregation, the first load, the third. Without GPUs (vLLM's
CPU build) the same runs in small with the demo model; that shows that the script works, and no more.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gpu import figures, options, traffic
from benchmarks.gpu.budget import Budget, Journal, Piece, carry_out
from benchmarks.gpu.host import Host
from benchmarks.gpu.load import Request, cache_counters, open_loop
from benchmarks.gpu.process import started
from benchmarks.gpu.stand import PEERS, Fleet, disaggregated, nats_server, peer, vllm_server
from benchmarks.replay import read_trace
from benchmarks.report import show

OURS = ("kv", "round_robin")
_DRAIN_S = 8.0
_SWITCH_S = 4.0


@dataclass(frozen=True)
class Size:
    """How large the measurement is.

    Attributes:
        scale: of the trace's lengths.
        longest: prompt, in tokens after scaling; longer ones are left out.
        longest_output: tokens of an answer, at most.
        rates: requests a second and GPU, lowest first.
        window_s: how long requests come in.
        goal: of goodput.
        short: of the mixed load, a GPU: rate, prompt tokens, output tokens.
        long: likewise.
        kv_gib: of KV for an engine on a GPU.
        l1_gib: of LMCache's memory.
    """

    scale: float
    longest: int
    longest_output: int
    rates: tuple[float, float, float]
    window_s: float
    goal: figures.Goal
    short: dict[str, Any]
    long: dict[str, Any]
    kv_gib: float
    l1_gib: float


GPU = Size(
    scale=0.5,
    longest=15_000,
    longest_output=128,
    rates=(5.0, 8.0, 11.0),
    window_s=10.0,
    goal=figures.Goal(1.0, 0.025),
    short={"rate": 6.0, "tokens": 300, "output": 160},
    long={"rate": 1.25, "tokens": 8000, "output": 16},
    kv_gib=24,
    l1_gib=24,
)
CPU = Size(
    scale=0.05,
    longest=1500,
    longest_output=16,
    rates=(1.0, 2.0, 3.0),
    window_s=5.0,
    goal=figures.Goal(5.0, 0.5),
    short={"rate": 1.0, "tokens": 60, "output": 30},
    long={"rate": 0.5, "tokens": 1500, "output": 4},
    kv_gib=1,
    l1_gib=1,
)


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
    writer: traffic.Writer
    logs: Path
    peers: Path | None
    start_s: float
    fleet: Fleet | None = None
    servers: dict[str, str] = field(default_factory=dict)
    disagg_url: str = ""
    ready_s: dict[str, float] = field(default_factory=dict)


@contextmanager
def engines(stand: Stand, count: int, *, fleet: bool, servers: bool, disagg: bool) -> Iterator[None]:
    """Run what is asked for, started all at once, one engine of each kind a device."""
    with ExitStack() as stack:
        commands = []
        if fleet:
            url, token = stack.enter_context(nats_server(stand.logs / "nats"))
            stand.fleet = Fleet(stand.host, count, stand.logs, url, **token)
            commands.append(stand.fleet.workers())
        if servers:
            made = [vllm_server(stand.host, index, count, events=True) for index in range(count)]
            stand.servers = {command.url: events for command, events in made}
            commands += [command for command, _ in made]
        if disagg:
            half = max(count // 2, 1)
            command, stand.disagg_url = disaggregated(stand.host, half, half, stand.logs, stand.size.l1_gib)
            commands.append(command)
        runnings = stack.enter_context(started(commands, stand.logs, stand.start_s))
        stand.ready_s |= {running.command.name: round(running.ready_s, 1) for running in runnings}
        yield


def plan(stand: Stand, trace: list[Any], gpus: int) -> list[Piece]:
    """Return the pieces in the order of their worth."""
    size = stand.size
    cost_s = size.window_s + _DRAIN_S / 2 + _SWITCH_S

    def at(rate: float) -> list[Piece]:
        arrivals = traffic.take_sessions(trace, round(rate * gpus * size.window_s), round(size.longest / size.scale))
        return [
            Piece(f"routing/{rate:g} a GPU/{name}", cost_s, functools.partial(routed, stand, name, arrivals, rate))
            for name in (*OURS, *PEERS)
        ]

    low, middle, high = (at(rate) for rate in size.rates)
    apart = [
        Piece("disagg/together", cost_s, functools.partial(together, stand, gpus)),
        Piece("disagg/apart", cost_s, functools.partial(apart_from, stand, gpus)),
    ]
    return [*middle, *apart, *low, *high]


def routed(stand: Stand, name: str, arrivals: list[Any], rate: float) -> dict[str, Any]:
    """Replay conversations through one router, and return what came of it."""
    writer = stand.writer.salted(f"{name} {rate}")
    size = stand.size
    requests = traffic.replay(arrivals, size.window_s, writer, size.scale, size.longest_output)
    with router(stand, name) as (url, metrics):
        return {
            "best_hit_rate": round(traffic.best_hit_rate(arrivals), 4),
            **run(url, metrics, requests, size, warm_up(writer, size)),
        }


@contextmanager
def router(stand: Stand, name: str) -> Iterator[tuple[str, list[str]]]:
    """Run one router before engines that are up; yields the endpoint and where the engines' counters are."""
    if name in OURS:
        assert stand.fleet is not None
        command, url, metrics = stand.fleet.router(name), stand.fleet.url, [stand.fleet.url]
    else:
        command = peer(name, stand.servers, stand.peers)
        url, metrics = command.url, list(stand.servers)
    with started([command], stand.logs, 60.0):
        yield url, metrics


def together(stand: Stand, gpus: int) -> dict[str, Any]:
    """Mixed load on workers that do both prefill and decode, behind the kv policy."""
    assert stand.fleet is not None
    with router(stand, "kv") as (url, metrics):
        return mixed(stand, gpus, url, metrics, "together")


def apart_from(stand: Stand, gpus: int) -> dict[str, Any]:
    """Mixed load on half of the engines as decode workers, the other half as prefill workers."""
    return mixed(stand, gpus, stand.disagg_url, [stand.disagg_url], "apart")


def mixed(stand: Stand, gpus: int, url: str, metrics: list[str], name: str) -> dict[str, Any]:
    """Return what came of the mixed load."""
    size, writer = stand.size, stand.writer.salted(name)
    short, long = ({**each, "rate": each["rate"] * gpus} for each in (size.short, size.long))
    requests = traffic.mixed(writer, size.window_s, short, long)
    return {"short": short, "long": long, **run(url, metrics, requests, size, warm_up(writer, size))}


def warm_up(writer: traffic.Writer, size: Size) -> list[Request]:
    """Return some requests of all lengths, which teach a router the engines' speed and an engine its kernels."""
    lengths = [size.longest // part for part in (20, 10, 8, 4, 4, 2, 2, 2)]
    return [Request(0.1 * n, writer.text(f"warm {n}", tokens), 4, "warm") for n, tokens in enumerate(lengths)]


def run(url: str, metrics: list[str], requests: list[Request], size: Size, warm: list[Request]) -> dict[str, Any]:
    """Send the load after a warm-up; return its figures and the prefix cache's hit rate."""
    limit_s = size.window_s + _DRAIN_S
    uvloop.run(open_loop(url, warm, limit_s))
    before = cache_counters(metrics)
    answers = uvloop.run(open_loop(url, requests, limit_s))
    after = cache_counters(metrics)
    return {
        **figures.by_kind(answers, size.goal),
        "hit_rate": figures.hit_rate(before, after),
        "answers": figures.raw(answers),
    }


def report(journal: Journal) -> None:
    """Print what was measured."""
    rows = []
    for name, found in journal.results.items():
        for kind in [kind for kind in ("all", "short", "long") if "ttft_ms" in found.get(kind, {})]:
            each = found[kind]
            ttft, itl = each["ttft_ms"], each["itl_ms"]
            rows.append([name, kind, f"{each['requests']} ({each['failed']})"])
            rows[-1] += [f"{ttft[key]:.0f}" for key in ("mean", "p50", "p99")]
            rows[-1] += [f"{itl.get('p50', 0):.1f}", f"{itl.get('p99', 0):.1f}", f"{each['output_tokens_per_s']:.0f}"]
            rows[-1] += [f"{each['goodput_per_s']:.1f}", f"{found['hit_rate']}"]
    columns = ["piece", "of", "requests (failed)", "TTFT ms: mean", "p50", "p99"]
    columns += ["ITL ms: p50", "p99", "tokens/s", "goodput/s", "hits"]
    show("Several GPUs", columns, rows)
    show("Not measured", ["piece", "why"], [[name, why[:200]] for name, why in journal.not_measured.items()])


def measure(stand: Stand, pieces: list[Piece], gpus: int, budget: Budget, journal: Journal) -> None:
    """Carry the pieces out; on a CPU only what a piece needs is up, as it cannot hold all at once."""
    need: dict[str, Callable[[str], bool]] = {
        "fleet": lambda name: name.rsplit("/", 1)[-1] in {*OURS, "together"},
        "servers": lambda name: name.startswith("routing/") and name.rsplit("/", 1)[-1] not in OURS and "router" in name,
        "disagg": lambda name: name == "disagg/apart",
    }
    wanted = {kind: [piece for piece in pieces if needs(piece.name)] for kind, needs in need.items()}
    groups = [list(wanted)] if not stand.host.on_cpu else [[kind] for kind in wanted]
    for group in groups:
        now = [piece for piece in pieces if any(piece in wanted[kind] for kind in group)]
        if not now:
            continue
        with engines(stand, gpus, **{kind: kind in group and bool(wanted[kind]) for kind in need}):
            journal.facts["ready_s"] = stand.ready_s
            carry_out(now, budget, journal)


def main() -> None:
    """Measure, print, write."""
    parser = options.parser(__doc__)
    parser.add_argument("--gpus", type=int, default=2, help="engines of each kind, one a GPU")
    parser.add_argument("--trace", type=Path, required=True, help="in Mooncake's format; a slice will do")
    parser.add_argument(
        "--peers", type=Path, help="the folder with vllm_router and sglang_router; without it they are left out"
    )
    parser.add_argument("--window-s", type=float, help="seconds of load a piece")
    chosen = parser.parse_args()
    budget = Budget(chosen.minutes * 60)
    host = options.host(chosen, chosen.gpus, GPU.kv_gib)
    size = CPU if host.on_cpu else GPU
    if chosen.window_s:
        size = replace(size, window_s=chosen.window_s)
    trace = read_trace(chosen.trace, None, None)
    journal = Journal(options.results_file(chosen), options.facts(chosen, host, size=vars(size) | {"goal": str(size.goal)}))
    with options.log_folder(chosen) as logs:
        stand = Stand(host, size, traffic.Writer(host.model), logs, chosen.peers, min(chosen.start_s, budget.left_s))
        pieces = [piece for piece in plan(stand, trace, chosen.gpus) if piece.name.startswith(chosen.only)]
        try:
            measure(stand, pieces, chosen.gpus, budget, journal)
        except (RuntimeError, TimeoutError) as error:
            journal.not_measured["engines"] = str(error)[-3000:]
            print(error, file=sys.stderr)
    journal.write()
    report(journal)


if __name__ == "__main__":
    main()
