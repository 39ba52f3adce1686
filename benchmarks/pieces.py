"""The pieces of the benchmark: what each compares, how it is run, how long it may take, and who reads what it found.

A new piece is one entry here: a module that takes ``--json FILE``, and a function from what it writes to `Findings`.
"""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import readings
from benchmarks.findings import Findings
from benchmarks.peers import DYNAMO


@dataclass(frozen=True)
class Effort:
    """How much to do.

    Attributes:
        rounds: how often each thing is measured; None for the piece's own choice.
        quick: only show that all of it works.
    """

    rounds: int | None = None
    quick: bool = False

    def rounds_or(self, usual: int) -> str:
        """Return the number of rounds as a command line's word."""
        return str(self.rounds or (1 if self.quick else usual))


@dataclass(frozen=True)
class Piece:
    """One piece.

    Attributes:
        name: on the command line.
        compares: what, with what.
        limit_s: it is ended after so long, in seconds.
        arguments: the command line after ``python -m``, without where to write.
        read: from what it wrote to what it found.
        needs: what the machine must have: nothing, ``vllm`` or ``gpu``.
        json_flag: how it is told where to write.
    """

    name: str
    compares: str
    limit_s: float
    arguments: Callable[[Effort], list[str]]
    read: Callable[[dict[str, Any]], Findings]
    needs: str = ""
    json_flag: str = "--json"


PIECES = (
    Piece(
        "index",
        "KV index, hash and decision in process: penstock, Dynamo's RadixTree and SelectionService",
        240,
        lambda effort: [
            *("benchmarks.index", "--only", "speed", "--peer-python", str(DYNAMO.python)),
            *("--rounds", effort.rounds_or(2)),
        ],
        readings.index,
    ),
    Piece(
        "routing",
        "a decision over NATS, events until visible, a router's recovery: penstock alone",
        120,
        lambda effort: ["benchmarks.routing", "--rounds", effort.rounds_or(2)],
        readings.routing,
    ),
    Piece(
        "events",
        "KV events from vLLM's own publisher to the index: penstock alone",
        120,
        lambda effort: ["benchmarks.kv_events", "--rounds", effort.rounds_or(2)],
        readings.events,
        needs="vllm",
    ),
    Piece(
        "control-plane",
        "requests end to end: penstock, Dynamo, vllm-router, sglang-router, production-stack",
        420,
        lambda effort: (
            ["benchmarks.control_plane", "--rounds", effort.rounds_or(3)] + (["--seconds", "0.5"] if effort.quick else [])
        ),
        readings.control_plane,
    ),
    Piece(
        "start",
        "an engine on demand and a graph of two workers: penstock, vLLM's own server cold",
        300,
        lambda effort: ["benchmarks.engines", "--rounds", effort.rounds_or(2)],
        readings.start,
        needs="vllm",
    ),
    Piece(
        "serve",
        "one real vLLM worker, and a graph's start: penstock, vLLM's own server",
        360,
        lambda effort: ["benchmarks.serve", "--rounds", effort.rounds_or(1)],
        readings.serve,
        needs="vllm",
    ),
    Piece(
        "routed",
        "two real vLLM workers on a load of shared prefixes: routed by KV, round-robin",
        180,
        lambda effort: ["benchmarks.routed", "--rounds", effort.rounds_or(2)],
        readings.routed,
        needs="vllm",
    ),
    Piece(
        "disagg",
        "real vLLM and LMCache: prefill in the decode worker, prefill in a prefill worker",
        240,
        lambda effort: [
            *("benchmarks.disagg", "--set", "decode.replicas=1", "--engine", '{"max_model_len": 4096}'),
            *("--tokens", "700,1000,2000", "--rounds", effort.rounds_or(5)),
        ],
        readings.disagg,
        needs="vllm",
    ),
    Piece(
        "jobs",
        "the job queue: penstock alone, with an engine that answers at once",
        150,
        lambda effort: ["benchmarks.jobs", "--rounds", effort.rounds_or(2)],
        readings.jobs,
    ),
    Piece(
        "cache",
        "queries of the cache controller over a million chunks: penstock alone",
        90,
        lambda _: ["benchmarks.cache_controller"],
        readings.cache,
        json_flag="--out",
    ),
)


def missing(needs: str) -> str:
    """Return why a piece with such needs cannot run here; empty when it can."""
    if needs == "vllm" and importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if needs == "gpu" and shutil.which("nvidia-smi") is None:
        return "there is no GPU"
    return ""
