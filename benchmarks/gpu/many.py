"""Several GPUs, one engine each: whose routing is better, and what prefill workers are good for.

    python -m benchmarks.gpu.many --gpus 2 --model /tmp/m8b --trace SLICE.jsonl --peers PEERS --minutes 3 --out DIR
    python -m benchmarks.gpu.many --gpus 4 …

Routing: conversations out of a trace, replayed within a window at rising load, cold caches each time: penstock's kv policy
and round robin on the same workers (only the router is exchanged), the peers' routers before vLLM's own servers, one engine
of each kind a GPU. Disaggregation: short chats and long prompts at random, on all workers of that fleet, and on half of the
engines with the other half as prefill workers. A piece that does not fit into `--minutes` is left out, and engines that only
it needs are not started; the order: the second load with kv, round robin and both cache_aware peers, disaggregation, the
second load with vllm-router's kv_aware, the first load, the third. Without GPUs (vLLM's CPU build) the same runs in small
with the demo model; that shows that the script works, and no more.
"""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gpu import figures, options, traffic
from benchmarks.gpu.budget import Budget, Journal, Piece, SkippedError, carry_out, fitting
from benchmarks.gpu.engines import OURS, Front, Kind, Stand, engines, router, warm_up
from benchmarks.gpu.load import Request, cache_counters, labelled, open_loop
from benchmarks.gpu.sizes import CPU, GPU, Size
from benchmarks.gpu.stand import PEERS, peer
from benchmarks.report import show
from components.simulate.trace import read_trace

_DRAIN_S = 8.0
_AROUND_S = 6.0  # of a piece, beside its window: a router starts, the warm-up, the last answers
_START_S = 60.0  # until all engines are ready, as far as the plan goes


def plan(stand: Stand, trace: list[Any], gpus: int) -> list[Piece]:
    """Return the pieces in the order of their worth."""
    size = stand.size
    cost_s = size.window_s + _AROUND_S

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
    return [*middle[:-1], *apart, middle[-1], *low, *high]


def routed(stand: Stand, name: str, arrivals: list[Any], rate: float) -> dict[str, Any]:
    """Replay conversations through one router, and return what came of it."""
    writer = stand.writer.salted(f"{name} {rate}")
    size = stand.size
    requests = traffic.replay(arrivals, size.window_s, writer, size.scale, size.longest_output)
    with router(stand, name) as front:
        found = run(front, requests, size, warm_up(writer, size))
        if name.endswith("kv_aware"):  # how often it knew the tokens, and what the workers hold of them
            found["decisions"] = labelled(front.router, "vllm_router_prefix_routing_decisions_total", "outcome")
        return {"best_hit_rate": round(traffic.best_hit_rate(arrivals), 4), **found}


def together(stand: Stand, gpus: int) -> dict[str, Any]:
    """Mixed load on workers that do both prefill and decode, behind the kv policy."""
    assert stand.fleet is not None
    with router(stand, "kv") as front:
        return mixed(stand, gpus, front, "together")


def apart_from(stand: Stand, gpus: int) -> dict[str, Any]:
    """Mixed load on half of the engines as decode workers, the other half as prefill workers."""
    found = mixed(stand, gpus, Front(stand.disagg_url, [stand.disagg_url]), "apart")
    metrics = {
        "remote_prefills": ("penstock_remote_prefills_total", "outcome"),
        "placements": ("penstock_placements_total", "reason"),
    }
    return found | {what: labelled(stand.disagg_url, *of) for what, of in metrics.items()}


def mixed(stand: Stand, gpus: int, front: Front, name: str) -> dict[str, Any]:
    """Return what came of the mixed load."""
    size, writer = stand.size, stand.writer.salted(name)
    short, long = ({**each, "rate": each["rate"] * gpus} for each in (size.short, size.long))
    requests = traffic.mixed(writer, size.window_s, short, long)
    return {"load": {"short": short, "long": long}, **run(front, requests, size, warm_up(writer, size))}


def run(front: Front, requests: list[Request], size: Size, warm: list[Request]) -> dict[str, Any]:
    """Send the load after a warm-up; return its figures and the prefix cache's hit rate."""
    limit_s = size.window_s + _DRAIN_S
    uvloop.run(open_loop(front.url, warm, limit_s))
    before = cache_counters(front.engines)
    answers = uvloop.run(open_loop(front.url, requests, limit_s))
    after = cache_counters(front.engines)
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


def measure(stand: Stand, pieces: list[Piece], gpus: int, budget: Budget, journal: Journal, *, at_once: bool) -> None:
    """Carry the pieces out, with all engines up `at_once`, or one kind after the other.

    Engines that are only for pieces that will not fit are not started; what is left over in the end goes to further pieces.
    """
    expected = fitting(pieces, budget.left_s - _START_S)
    kinds = list(dict.fromkeys(_kind(piece) for piece in expected))
    for piece in pieces:
        if _kind(piece) not in kinds:
            journal.not_measured[piece.name] = f"would not fit into {budget.left_s:.0f} s, so its engines were not started"
    for group in [[kind] for kind in kinds] if not at_once else [kinds]:
        now = [piece for piece in pieces if _kind(piece) in group]
        with engines(stand, gpus, group) as failed:
            journal.facts["ready_s"] = stand.ready_s
            journal.not_measured |= {piece.name: failed[_kind(piece)] for piece in now if _kind(piece) in failed}
            carry_out([piece for piece in now if _kind(piece) not in failed], budget, journal)


def _kind(piece: Piece) -> Kind:
    """Return what must be up for a piece."""
    if piece.name == "disagg/apart":
        return "disagg"
    return "servers" if piece.name.split("/", 2)[-1] in PEERS else "fleet"


def _missing(piece: Piece, stand: Stand) -> str:
    """Return why a peer's piece cannot be measured here, empty when it can."""
    name = piece.name.split("/", 2)[-1]
    try:
        if name in PEERS:
            peer(name, {}, stand.peers)
    except SkippedError as error:
        return str(error)
    return ""


def main() -> None:
    """Measure, print, write."""
    parser = options.parser(__doc__)
    parser.add_argument("--gpus", type=int, default=2, help="engines of each kind, one a GPU")
    parser.add_argument("--trace", type=Path, required=True, help="in Mooncake's format; a slice will do")
    parser.add_argument(
        "--peers", type=Path, help="the folder with vllm_router and sglang_router; without it they are left out"
    )
    parser.add_argument("--at-once", action="store_true", help="start all engines at once, as on GPUs, on a CPU too")
    parser.add_argument("--window-s", type=float, help="seconds of load a piece")
    chosen = parser.parse_args()
    budget = Budget(chosen.minutes * 60)
    host = options.host(chosen, chosen.gpus, GPU.kv_gib)
    size = CPU if host.on_cpu else GPU
    if chosen.window_s:
        size = replace(size, window_s=chosen.window_s)
    trace = read_trace(chosen.trace)
    journal = Journal(options.results_file(chosen), options.facts(chosen, host, size=vars(size) | {"goal": str(size.goal)}))
    with options.log_folder(chosen) as logs:
        stand = Stand(host, size, traffic.Writer(host.model), logs, chosen.peers, min(chosen.start_s, budget.left_s))
        pieces = [piece for piece in plan(stand, trace, chosen.gpus) if piece.name.startswith(chosen.only)]
        journal.not_measured |= {piece.name: why for piece in pieces if (why := _missing(piece, stand))}
        pieces = [piece for piece in pieces if piece.name not in journal.not_measured]
        measure(stand, pieces, chosen.gpus, budget, journal, at_once=chosen.at_once or not host.on_cpu)
    journal.write()
    report(journal)


if __name__ == "__main__":
    main()
