"""The peer's side of `benchmarks.simulate_dynamo`: Dynamo's offline replay, run by its own Python, one JSON line a task.

Knows only the package ai-dynamo-runtime: its KV router's core and its mocker's engines, in a virtual clock of theirs.
"""

import json
import sys
from importlib.metadata import version
from typing import Any

from dynamo._core import run_mocker_trace_replay
from dynamo.llm import KvRouterConfig

TRACE_BLOCK_TOKENS = 512
ROUTERS = {
    "round_robin": lambda: ("round_robin", None),
    "kv": lambda: ("kv_router", KvRouterConfig()),
    "approximate": lambda: ("kv_router", KvRouterConfig(use_kv_events=False)),
}
FIGURES = {
    "requests": "completed_requests",
    "reuse_ratio": "prefix_cache_reused_ratio",
    "ttft_mean_ms": "mean_ttft_ms",
    "ttft_p50_ms": "median_ttft_ms",
    "ttft_p99_ms": "p99_ttft_ms",
    "tpot_mean_ms": "mean_tpot_ms",
    "e2e_mean_ms": "mean_e2e_latency_ms",
    "output_tokens_per_s": "output_throughput_tok_s",
}


def replay(task: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one trace under one policy."""
    mode, config = ROUTERS[task["policy"]]()
    result = run_mocker_trace_replay(
        [task["trace"]],
        extra_engine_args={"engine": {"block_size": task["block_size"], "num_gpu_blocks": task["kv_blocks"]}},
        router_config=config,
        num_workers=task["workers"],
        router_mode=mode,
        arrival_speedup_ratio=task["speed"],
        trace_block_size=TRACE_BLOCK_TOKENS,
    )
    return {ours: result.summary[theirs] for ours, theirs in FIGURES.items()}


def main() -> None:
    """Say the version, then do one task a line."""
    print(json.dumps({"version": version("ai-dynamo-runtime")}), flush=True)
    for line in sys.stdin:
        print(json.dumps(replay(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
