"""From what each piece wrote down to figures and goals. Knows the form of every piece's JSON; measures nothing.

The goals are those the project has set itself for a machine of two cores without a GPU.
"""

import statistics
from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.findings import Figure, Findings, Goal, ratio_of

Sense = Literal["at least", "at most"]
OURS = "penstock"


def index(raw: dict[str, Any]) -> Findings:
    """Read the KV index."""
    tasks = raw["index"]["tasks"]
    figures = []
    for name, sides in tasks.items():
        unit = next(iter(sides[OURS][0]))
        samples = {side: [run[unit] for run in runs] for side, runs in sides.items()}
        figures.append(Figure(name, {"p50_us": "us", "mblocks_per_s": "M blocks/s"}[unit], samples))
    for name, sides in raw["decision"].items():
        samples = {side: runs["p50_us"] for side, runs in sides.items()}
        figures.append(Figure(f"decision, {name}: p50", "us", samples))
    by_name = {figure.name: figure.samples for figure in figures}
    hit, ends = by_name["lookup workers=8 size=512 all"], by_name["lookup workers=256 size=512 ends"]
    goals = [
        _goal("lookup, 512 blocks, 8 workers", hit[OURS], "at most", 2, "us"),
        _goal("lookup, 4,096 blocks, 8 workers", by_name["lookup workers=8 size=4096 all"][OURS], "at most", 10, "us"),
        _against("lookup against RadixTree, times as fast", hit.get("dynamo", []), hit[OURS], 8),
        _goal("lookup, 512 blocks, 256 workers that end everywhere", ends[OURS], "at most", 50, "us", _ENDS),
        _goal("ingest", by_name["ingest workers=8 blocks=131072 event_blocks=64"][OURS], "at least", 4, "M blocks/s", _BUSY),
        _goal("8,192 tokens hashed", by_name["hash tokens=8192 block_size=32"][OURS], "at most", 300, "us"),
        _goal(
            "decision, 8 workers, 512 blocks", by_name["decision, 8 workers, 512 blocks: p50"][OURS], "at most", 100, "us"
        ),
    ]
    return Findings(figures, goals, [] if raw["index"]["dynamo"] else ["Dynamo's runtime was not installed."])


def routing(raw: dict[str, Any]) -> Findings:
    """Read the router over NATS."""
    decision, rates = raw["decision"], raw["throughput"]
    events = [value / 1e6 for value in raw["events"]["blocks_per_s"]]
    figures = [
        _alone("decision over NATS, 512 blocks, 8 workers: p50", "ms", decision["p50_ms"]),
        _alone("the same: p99", "ms", decision["p99_ms"]),
        _alone("decisions, 32 at once, one router", "/s", rates["1"]),
        _alone("decisions, 32 at once, two routers", "/s", rates["2"]),
        _alone("events of 64 blocks until visible", "M blocks/s", events),
        _alone("router killed with 1,048,576 blocks: whole again after", "s", raw["recovery"]["from_start_s"]),
    ]
    goals = [
        _goal("decision over NATS: p50", decision["p50_ms"], "at most", 0.5, "ms"),
        _goal("decisions with two routers", rates["2"], "at least", 3000, "/s", "three processes share two cores"),
        _goal("events until visible", events, "at least", 0.5, "M blocks/s"),
        _goal("whole again after a kill", raw["recovery"]["from_start_s"], "at most", 2, "s"),
    ]
    return Findings(figures, goals)


def events(raw: dict[str, Any]) -> Findings:
    """Read the KV events' way from vLLM's publisher."""
    figures = [
        _alone("decoded and hashed anew", "M blocks/s", raw["translate_mblocks_per_s"]),
        _alone("vLLM's publisher to the index", "M blocks/s", raw["mblocks_per_s"]),
        _alone("one event: p50", "ms", raw["p50_ms"]),
        _alone("one event: p99", "ms", raw["p99_ms"]),
    ]
    why = "four processes share two cores; most of the worker's time is vLLM's token ids out of MessagePack"
    return Findings(
        figures, [_goal("from vLLM's publisher until visible", raw["mblocks_per_s"], "at least", 0.5, "M blocks/s", why)]
    )


def control_plane(raw: dict[str, Any]) -> Findings:
    """Read requests end to end."""
    figures = []
    for key, unit, what in (
        ("requests_per_s", "/s", "requests"),
        ("ttft_p50_ms", "ms", "TTFT p50"),
        ("cpu_ms", "ms", "CPU a request"),
        ("worker_cpu_ms", "ms", "of it in stand-ins for engines"),
    ):
        for cell, systems in raw["cells"].items():
            samples = {name: [run[key] for run in runs] for name, runs in systems.items()}
            figures.append(Figure(f"{what}, {_cell(cell)}", unit, samples))
    goals = []
    cells = raw["cells"]
    for cell in ("stream 16", "stream 64", "whole 16", "whole 64"):
        rate = {name: [run["requests_per_s"] for run in runs] for name, runs in cells[cell].items()}
        for name, peer in _DYNAMO.items():
            goals.append(_against(f"requests/s against {peer}, {_cell(cell)}", rate[OURS], rate.get(name, []), 1, _HOPS))
        goals.append(
            _against(f"against production-stack, {_cell(cell)}", rate[OURS], rate.get("production-stack", []), 3, _GITHUB)
        )
    first = {name: [run["ttft_p50_ms"] for run in runs] for name, runs in cells["stream 1"].items()}
    for name, peer in _DYNAMO.items():
        goals.append(_against(f"TTFT against {peer} at 1, times as fast", first.get(name, []), first[OURS], 1, _HOPS))
    failed = {name: sum(run["failed"] for runs in systems.values() for run in runs) for name, systems in _by_system(cells)}
    notes = [f"{name} {version}" for name, version in raw["versions"].items() if version]
    notes += [f"{name} was not measured: {why}" for name, why in raw["missing"].items()]
    notes += [f"{name} failed {count:.0f} requests." for name, count in failed.items() if count]
    return Findings(figures, goals, notes)


def start(raw: dict[str, Any]) -> Findings:
    """Read engines on demand."""
    totals = {name: [run["total"] for run in raw[name]] for name in ("cold", "create", "switch")}
    figures = [
        Figure("until the first token", "s", {OURS: totals["create"], "vLLM's server, cold": totals["cold"]}),
        _alone("switch to another model", "s", totals["switch"]),
        _alone("pool ready", "s", [raw["pool_ready_s"]]),
        _alone("idle warm rank, PSS", "MiB", [raw["idle_rank_pss_mib"]]),
        _alone("deletion", "s", raw["delete_s"]),
    ]
    goals = [
        _against("against a cold server, times as fast", totals["cold"], totals["create"], 8),
        _goal("create until the first token", totals["create"], "at most", 5, "s"),
        _goal("idle warm rank", [raw["idle_rank_pss_mib"]], "at most", 700, "MiB"),
        _goal("switch / first creation", [statistics.median(totals["switch"]) / totals["create"][0]], "at most", 1.3),
    ]
    return Findings(figures, goals)


def serve(raw: dict[str, Any]) -> Findings:
    """Read penstock beside vLLM's own server."""
    ours, theirs = raw["start_s"]["penstock, 2 workers"], raw["start_s"]["vllm server"]
    figures = [
        Figure("ready, penstock with two workers", "s", {OURS: ours, "vLLM's server": theirs}),
        _both("TTFT, one at a time", "ms", raw["ttft_ms"]),
        _both("ITL, one at a time", "ms", raw["itl_ms"]),
        _both("output, 32 at a time", "tokens/s", raw["tokens_per_s"]),
        *(_alone(f"resident memory, {name}", "MiB", [value]) for name, value in raw["rss_mib"].items()),
    ]
    memory = raw["rss_mib"]
    goals = [
        _goal("TTFT added to vLLM's server", [raw["added_ttft_ms"]], "at most", 3, "ms"),
        _goal("output against vLLM's server", [raw["throughput_ratio"]], "at least", 1, "times", _NOISE),
        _against("ready against one vLLM server, times as fast", theirs, ours, 1),
        _goal("processor's memory", [memory["processor"]], "at most", 250, "MiB"),
        _goal("decode worker above a bare AsyncLLM", [memory["decode"] - memory["bare AsyncLLM"]], "at most", 150, "MiB"),
    ]
    return Findings(figures, goals)


def routed(raw: dict[str, Any]) -> Findings:
    """Read routed against round-robin."""
    runs = raw["policies"]
    figures = [
        Figure(what, unit, {name: [run[key] for run in each] for name, each in runs.items()})
        for key, what, unit in (
            ("ttft_mean_ms", "TTFT mean", "ms"),
            ("ttft_p50_ms", "TTFT p50", "ms"),
            ("ttft_p99_ms", "TTFT p99", "ms"),
            ("tokens_per_s", "output", "tokens/s"),
            ("cached_share", "prompt tokens from a cache", "share"),
        )
    ]
    kv, other = ([run["ttft_mean_ms"] for run in runs[name]] for name in ("kv", "round_robin"))
    return Findings(figures, [_against("mean TTFT, round-robin / routed", other, kv, 1)])


def disagg(raw: dict[str, Any]) -> Findings:
    """Read local against remote prefill."""
    sizes = sorted({int(name.split()[1]) for name in raw["ttft_s"]})
    figures = [
        Figure(
            f"TTFT, {size:,} tokens",
            "ms",
            {f"prefill {way}": [1e3 * value for value in raw["ttft_s"][f"{way} {size}"]] for way in ("local", "remote")},
        )
        for size in sizes
    ]
    pauses = {f"prefill {way}": [1e3 * value for value in values] for way, values in raw["pause_s"].items()}
    figures.append(Figure("longest pause of streams beside long prompts", "ms", pauses))
    overhead = 1e3 * raw["phases_s"]["overhead of all that, without computing"]
    figures.append(_alone("remote prefill's own overhead, mean", "ms", [overhead]))
    goals = [
        _goal("overhead of a remote prefill", [overhead], "at most", 15, "ms"),
        _goal("same greedy text", [raw["same_text"] / raw["prompts"]], "at least", 1, "share"),
    ]
    return Findings(figures, goals)


def jobs(raw: dict[str, Any]) -> Findings:
    """Read the job queue."""
    quantiles = raw["quantiles_ms"]
    figures = [
        _alone("accepted durably, one a request, 64 at a time", "jobs/s", raw["single"]),
        _alone("accepted durably, batches of 250", "jobs/s", raw["batched"]),
        *(_alone(f"submission until inference begins: {name}", "ms", [value]) for name, value in quantiles.items()),
        _alone("submitted, done and recorded by 4 workers", "jobs/s", raw["through"]),
    ]
    goals = [
        _goal("accepted durably", raw["single"], "at least", 2000, "jobs/s"),
        _goal("until inference begins: p50", [quantiles["p50"]], "at most", 10, "ms"),
        _goal("until inference begins: p99", [quantiles["p99"]], "at most", 100, "ms"),
        _goal("through 4 workers", raw["through"], "at least", 500, "jobs/s", _CLIENT),
    ]
    return Findings(figures, goals)


def cache(raw: dict[str, Any]) -> Findings:
    """Read the cache controller's queries."""
    figures = [
        _alone(f"{call}: {name}", "ms", [value]) for call, times in raw["ms"].items() for name, value in times.items()
    ]
    goals = [
        _goal("/query_worker_info, 1,000 workers: p50", [raw["ms"]["query_worker_info, all"]["p50"]], "at most", 2, "ms"),
        _goal(
            "/lookup, 8,000 tokens, 1 M chunks: p50", [raw["ms"]["lookup, 8,000 tokens held"]["p50"]], "at most", 10, "ms"
        ),
    ]
    return Findings(figures, goals)


_DYNAMO = {"dynamo": "Dynamo", "dynamo-joined": "Dynamo with its mockers in one process"}
_HOPS = (
    "processor and worker, in Python, take 0.9 and 0.7 ms of CPU for a request that comes alone, and their messages cross"
    " NATS; Dynamo's are in Rust and connected; docs/log.md has the profile"
)
_GITHUB = "production-stack's router is on GitHub only, which this machine does not reach; docs/log.md has an older figure"
_ENDS = "looking 512 blocks up takes 13 us of it, comparing masks of 256 bits 12, names and the answer the rest"
_BUSY = "on a busy machine; docs/log.md has 8.56 on a quiet one"
_CLIENT = "most of a job is the worker's HTTP request to the engine; docs/log.md has 580 on a quieter machine"
_NOISE = "the engine is the limit; around 1 it is the machine's noise"


def _alone(name: str, unit: str, samples: list[float]) -> Figure:
    return Figure(name, unit, {OURS: samples})


def _both(name: str, unit: str, samples: dict[str, list[float]]) -> Figure:
    return Figure(name, unit, {OURS: samples[OURS], "vLLM's server": samples["vllm"]})


def _goal(name: str, samples: Sequence[float], sense: Sense, bound: float, unit: str = "", why_not: str = "") -> Goal:
    value = statistics.median(samples) if samples else None
    goal = Goal(name, value, sense, bound, unit)
    return goal if goal.reached else Goal(name, value, sense, bound, unit, why_not)


def _against(name: str, above: Sequence[float], below: Sequence[float], times: float, why_not: str = "") -> Goal:
    """Return the goal that `above` is so many times `below`, round by round."""
    value = ratio_of(above, below)
    goal = Goal(name, value, "at least", times, "times")
    return goal if goal.reached else Goal(name, value, "at least", times, "times", why_not or "the peer was not measured")


def _cell(cell: str) -> str:
    way, concurrency = cell.split()
    return f"{'streamed' if way == 'stream' else 'whole'}, {concurrency} at a time"


def _by_system(cells: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    names = dict.fromkeys(name for systems in cells.values() for name in systems)
    return [(name, {cell: systems[name] for cell, systems in cells.items() if name in systems}) for name in names]
