"""How large the measurements of `many` are, on GPUs and in small on a CPU."""

from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.figures import Goal


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
        l1_gib: of LMCache's memory, a prefill worker; it evicts once a second, and stores nothing more that does not fit.
    """

    scale: float
    longest: int
    longest_output: int
    rates: tuple[float, float, float]
    window_s: float
    goal: Goal
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
    goal=Goal(1.0, 0.025),
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
    goal=Goal(5.0, 0.5),
    short={"rate": 1.0, "tokens": 60, "output": 30},
    long={"rate": 0.5, "tokens": 1500, "output": 4},
    kv_gib=1,
    l1_gib=1,
)
