"""One GPU: what penstock costs beside bare vLLM, and how near a mix of hits and misses comes to the engine's floor.

    python -m benchmarks.gpu.one --model /tmp/m8b --minutes 3 --out DIR

penstock (processor, router with the kv policy, one worker) and vLLM's own server share the GPU, are up at the same time,
have the same engine arguments, and take turns under the same client. Pieces, in this order; what no longer fits is left
out: overhead (TTFT and ITL, one request at a time), mix (new prompts and repeated ones, one and four at a time, against the
floor: the TTFT of the same kind at bare vLLM, one at a time, in the shares of the mix), load (32 at once: tokens a second,
ITL). On a CPU (vLLM's CPU build) the same runs in small with the demo model.
"""

import random
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gpu import figures, options
from benchmarks.gpu.budget import Budget, Journal, Piece, carry_out
from benchmarks.gpu.host import Host
from benchmarks.gpu.load import Request, closed_loop
from benchmarks.gpu.process import started
from benchmarks.gpu.stand import penstock, vllm_server
from benchmarks.gpu.traffic import Writer
from benchmarks.report import show
from benchmarks.servers import free_port

_GOAL = figures.Goal(1.0, 0.025)


@dataclass(frozen=True)
class Size:
    """How large the measurement is.

    Attributes:
        prompt: tokens, of overhead and load.
        output: tokens, of overhead.
        each: requests of a turn.
        rounds: turns of overhead.
        document: tokens of a prompt of the mix.
        documents: in the mix.
        repeats: how often each is asked again.
        load: requests of a turn at 32 at once.
        load_output: tokens of their answers.
        load_rounds: turns of load.
        second_s: what a second of an H200 is here.
    """

    prompt: int = 1000
    output: int = 64
    each: int = 6
    rounds: int = 4
    document: int = 8000
    documents: int = 8
    repeats: int = 3
    load: int = 96
    load_output: int = 128
    load_rounds: int = 2
    second_s: float = 1.0


GPU = Size()
CPU = Size(prompt=200, output=16, each=5, rounds=2, document=1000, documents=4, load=32, load_output=16, second_s=2.0)


@dataclass(frozen=True)
class Sides:
    """What is compared, name → URL, and what is asked."""

    urls: dict[str, str]
    size: Size
    writer: Writer

    def ask(self, name: str, requests: list[Request], concurrency: int) -> list[figures.Answer]:
        """Send requests to one side.

        Raises:
            RuntimeError: one has failed.
        """
        answers: list[figures.Answer] = uvloop.run(
            closed_loop(self.urls[name], requests, concurrency, 60 * self.size.second_s)
        )
        if failed := [answer.error for answer in answers if answer.error]:
            raise RuntimeError(f"{name}: {len(failed)} of {len(answers)} requests failed: {failed[0]}")
        return answers

    def turns(self, rounds: int) -> Iterator[tuple[int, str]]:
        """Yield round and side, the sides in turns."""
        for number in range(rounds):
            for name in list(self.urls) if number % 2 else reversed(list(self.urls)):
                yield number, name


def overhead(sides: Sides) -> dict[str, Any]:
    """TTFT and ITL of new prompts, one at a time; both sides get the same texts."""
    size = sides.size
    found: dict[str, list[figures.Answer]] = {name: [] for name in sides.urls}
    for number, name in sides.turns(size.rounds):
        texts = [sides.writer.text(f"overhead {number} {n}", size.prompt) for n in range(size.each)]
        found[name] += sides.ask(name, [Request(0, text, size.output) for text in texts], 1)
    return _compared(found)


def mix(sides: Sides) -> dict[str, Any]:
    """TTFT of new and repeated prompts in random order, one and four at a time, against the floor."""
    size = sides.size
    order = [number for number in range(size.documents) for _ in range(size.repeats + 1)]
    alone: dict[str, dict[str, list[float]]] = {name: {"miss": [], "hit": []} for name in sides.urls}
    for name in sides.urls:
        for answer in sides.ask(name, _documents(sides, "alone", sorted(order)), 1):
            alone[name][answer.kind].append(answer.ttft_s * 1e3)
    floor = {kind: statistics.median(values) for kind, values in alone["vllm"].items()}
    found: dict[str, Any] = {"alone_ttft_ms": {name: _medians(kinds) for name, kinds in alone.items()}, "floor_ms": floor}
    for concurrency in (1, 4):
        for name in sides.urls:
            shuffled = random.Random(concurrency).sample(order, len(order))
            answers = sides.ask(name, _documents(sides, f"mix {concurrency}", shuffled), concurrency)
            mean = statistics.fmean(answer.ttft_s * 1e3 for answer in answers)
            least = statistics.fmean(floor[answer.kind] for answer in answers)
            kinds = {kind: [a.ttft_s * 1e3 for a in answers if a.kind == kind] for kind in floor}
            found[f"{name}, {concurrency} at a time"] = {
                "ttft_mean_ms": round(mean, 2),
                "floor_mean_ms": round(least, 2),
                "over_floor_ms": round(mean - least, 2),
                "ttft_median_ms": _medians(kinds),
                "answers": figures.raw(answers),
            }
    return found


def load(sides: Sides) -> dict[str, Any]:
    """Tokens a second and ITL with 32 requests at once."""
    size = sides.size
    found: dict[str, list[figures.Answer]] = {name: [] for name in sides.urls}
    rates: dict[str, list[float]] = {name: [] for name in sides.urls}
    for number, name in sides.turns(size.load_rounds):
        texts = [sides.writer.text(f"load {number} {n}", size.prompt) for n in range(size.load)]
        answers = sides.ask(name, [Request(0, text, size.load_output) for text in texts], 32)
        found[name] += answers
        span_s = max(answer.due_s + answer.end_s for answer in answers)
        rates[name].append(round(sum(answer.output_tokens for answer in answers) / span_s, 1))
    return _compared(found) | {"output_tokens_per_s": rates}


def _documents(sides: Sides, name: str, order: list[int]) -> list[Request]:
    seen: set[int] = set()
    requests = []
    for number in order:
        kind = "hit" if number in seen else "miss"
        seen.add(number)
        requests.append(Request(0, sides.writer.text(f"{name} {number}", sides.size.document), 8, kind))
    return requests


def _compared(found: dict[str, list[figures.Answer]]) -> dict[str, Any]:
    each = {name: figures.summary(answers, _GOAL) for name, answers in found.items()}
    ttft = {name: statistics.median(answer.ttft_s * 1e3 for answer in answers) for name, answers in found.items()}
    tpot = {name: statistics.median(answer.tpot_s * 1e3 for answer in answers) for name, answers in found.items()}
    return {
        **each,
        "added_ttft_ms": round(ttft["penstock"] - ttft["vllm"], 3),
        "added_tpot_ms": round(tpot["penstock"] - tpot["vllm"], 3),
        "answers": {name: figures.raw(answers) for name, answers in found.items()},
    }


def _medians(kinds: dict[str, list[float]]) -> dict[str, float]:
    return {kind: round(statistics.median(values), 2) for kind, values in kinds.items() if values}


def warm_up(sides: Sides) -> None:
    """Have both sides compute prompts of all lengths, and many at once."""
    size = sides.size
    for name in sides.urls:
        lengths = [size.document, size.document // 2, size.prompt, size.prompt]
        sides.ask(name, [Request(0, sides.writer.text(f"warm {n}", tokens), 8) for n, tokens in enumerate(lengths)], 1)
        sides.ask(name, [Request(0, sides.writer.text(f"warm, load {n}", size.prompt), 8) for n in range(32)], 32)


def pieces(sides: Sides) -> list[Piece]:
    """Return the pieces in the order of their worth."""
    second_s = sides.size.second_s
    return [
        Piece("overhead", 22 * second_s, partial(overhead, sides)),
        Piece("mix", 25 * second_s, partial(mix, sides)),
        Piece("load", 25 * second_s, partial(load, sides)),
    ]


@contextmanager
def both(host: Host, logs: Path, start_s: float, ready_s: dict[str, float]) -> Iterator[dict[str, str]]:
    """Run vLLM's own server and penstock on one device; yields name → URL."""
    port = free_port()
    settings = [*host.settings(), f"http.port={port}", f"router.http_port={free_port()}", "decode.replicas=1"]
    commands = [vllm_server(host, 0, 1)[0], penstock("penstock", "agg_router.yaml", logs, settings, port)]
    with started(commands, logs, start_s) as runnings:
        ready_s |= {running.command.name: round(running.ready_s, 1) for running in runnings}
        yield {"vllm": commands[0].url, "penstock": commands[1].url}


def report(journal: Journal) -> None:
    """Print what was measured."""
    for name, found in journal.results.items():
        rows = []
        for side in ("vllm", "penstock"):
            if "ttft_ms" in found.get(side, {}):
                each = found[side]
                cells = (f"{each['ttft_ms']['p50']:.2f}", f"{each['ttft_ms']['p99']:.2f}", f"{each['tpot_ms']['p50']:.2f}")
                rows.append([side, str(each["requests"]), *cells, str(found.get("output_tokens_per_s", {}).get(side, "-"))])
        if rows:
            show(f"{name}, ms; penstock adds {found['added_ttft_ms']} to TTFT, {found['added_tpot_ms']} to each token",
                 ["", "requests", "TTFT p50", "p99", "ms a token", "tokens/s"], rows)  # fmt: skip
    for side, each in journal.results.get("mix", {}).items():
        print(f"mix: {side}: { {k: v for k, v in each.items() if k != 'answers'} }")
    show("Not measured", ["piece", "why"], [[name, why[:200]] for name, why in journal.not_measured.items()])


def main() -> None:
    """Measure, print, write."""
    chosen = options.parser(__doc__).parse_args()
    budget = Budget(chosen.minutes * 60)
    host = options.host(chosen, 1, 16)
    size = CPU if host.on_cpu else GPU
    journal = Journal(options.results_file(chosen), options.facts(chosen, host, size=vars(size)))
    ready_s: dict[str, float] = {}
    with options.log_folder(chosen) as logs:
        try:
            with both(host, logs, min(chosen.start_s, budget.left_s), ready_s) as urls:
                journal.facts["ready_s"] = ready_s
                sides = Sides(urls, size, Writer(host.model))
                warm_up(sides)
                carry_out([piece for piece in pieces(sides) if piece.name.startswith(chosen.only)], budget, journal)
        except (RuntimeError, TimeoutError) as error:
            journal.not_measured["engines"] = str(error)[-3000:]
            print(error, file=sys.stderr)
    journal.write()
    report(journal)


if __name__ == "__main__":
    main()
