"""Routing policies on recorded traffic: a trace in Mooncake's format over simulated engines, in a virtual clock.

    python -m benchmarks.traces --trace FILE [FILE …] --speed S [S …] [--seconds S] [--requests N] [--policy P …]
        [--workers 8] [--timing h200-8b] [--occupancy-weight W] [--decode-weight W] [--seed 0] [--json FILE]

`--speed 2` replays twice as fast as recorded; `--seconds` counts the trace's own. The same arguments give the same figures,
wall time apart.
"""

import argparse
import gc
import statistics
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.replay import Outcome, Replay, read_trace
from benchmarks.replay_worker import Setup
from benchmarks.report import show, write_json
from components.router.cost import CostSettings

POLICIES = ["kv", "round_robin", "least_loaded", "random"]
_COLUMNS = [
    "policy", "requests", "prefix reuse (expected)", "TTFT ms: mean", "p50", "p99", "E2E ms: mean",
    "output tokens/s", "wall s",
]  # fmt: skip


def main() -> None:
    """Replay, print, write."""
    options = _options()
    costs = CostSettings()
    for name in ("occupancy_weight", "decode_weight"):
        if (value := getattr(options, name)) is not None:
            costs = msgspec.structs.replace(costs, **{name: value})
    setup = Setup(
        workers=options.workers,
        timing=options.timing,
        block_size=options.block_size,
        kv_blocks=options.kv_blocks,
        costs=costs,
        seed=options.seed,
    )
    runs = []
    for trace in options.trace:
        arrivals = read_trace(trace, options.seconds, options.requests)
        for speed in options.speed:
            rows = []
            for policy in options.policy:
                rows.append({"policy": policy, **_figures(Replay(arrivals, speed, policy, setup).run())})
                gc.collect()
            show(f"{trace.name} x {speed:g}, {setup.workers} workers", _COLUMNS, [_cells(row) for row in rows])
            runs.append({"trace": trace.name, "speed": speed, "rows": rows})
    write_json(options.json, {"setup": msgspec.to_builtins(setup), "runs": runs})


def _figures(outcome: Outcome) -> dict[str, Any]:
    """Return what a replay shows, times in ms."""
    ttft, e2e = outcome.ttft_s, outcome.e2e_s
    return {
        "requests": len(e2e),
        "reuse_ratio": outcome.cached_tokens / outcome.prompt_tokens,
        "expected_reuse_ratio": outcome.predicted_tokens / outcome.prompt_tokens,
        "ttft_mean_ms": statistics.fmean(ttft) * 1000,
        "ttft_p50_ms": statistics.median(ttft) * 1000,
        "ttft_p99_ms": sorted(ttft)[len(ttft) * 99 // 100] * 1000,
        "e2e_mean_ms": statistics.fmean(e2e) * 1000,
        "output_tokens_per_s": outcome.output_tokens / outcome.span_s,
        "preempted": outcome.preempted,
        "span_s": outcome.span_s,
        "wall_s": outcome.wall_s,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["policy"],
        f"{row['requests']:,}",
        f"{row['reuse_ratio']:.3f} ({row['expected_reuse_ratio']:.3f})",
        *(
            f"{row[key]:,.0f}"
            for key in ("ttft_mean_ms", "ttft_p50_ms", "ttft_p99_ms", "e2e_mean_ms", "output_tokens_per_s")
        ),
        f"{row['wall_s']:.1f}",
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, nargs="+", required=True, help="in Mooncake's format, one JSON object a line")
    parser.add_argument("--speed", type=float, nargs="+", default=[1.0], help="times as fast as recorded")
    parser.add_argument("--seconds", type=float, help="only so much of the trace, in its own time")
    parser.add_argument("--requests", type=int, help="only so many requests")
    parser.add_argument("--policy", nargs="+", default=POLICIES, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--timing", default="h200-8b", help="the engines' timing table")
    parser.add_argument("--block-size", type=int, default=64, help="tokens a KV block")
    parser.add_argument("--kv-blocks", type=int, default=16_384, help="KV blocks an engine")
    parser.add_argument("--occupancy-weight", type=float, help="of the cost formula")
    parser.add_argument("--decode-weight", type=float, help="of the cost formula")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
