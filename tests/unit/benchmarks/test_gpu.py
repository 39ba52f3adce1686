"""What the GPU scripts decide and compute without an engine: what fits, what was seen, what is asked."""

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu import figures, traffic
from benchmarks.gpu.budget import Budget, Journal, Piece, SkippedError, carry_out, fitting
from benchmarks.gpu.figures import Answer, Goal
from benchmarks.gpu.host import ON_GPU, Host
from benchmarks.gpu.process import Command, started
from benchmarks.gpu.stand import Fleet, disaggregated, flags, peer
from components.engine.vllm_args import mistaken_arg
from components.graph.load import load_graph
from components.graph.schema import VllmEngine
from components.launch.devices import Machine
from components.launch.plan import make_plan
from components.model.demo import demo_model
from components.simulate.trace import Request as Arrival

GOAL = Goal(ttft_s=0.5, tpot_s=0.02)


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def journal(path: Path | None = None) -> Journal:
    """Return an empty one."""
    return Journal(path, {"gpus": 2})


def answer(due_s: float, *moments_s: float, kind: str = "trace", error: str = "") -> Answer:
    """Return one whose text came at `moments_s`."""
    return Answer(
        kind=kind,
        due_s=due_s,
        moments_s=list(moments_s),
        end_s=moments_s[-1] if moments_s else 0.0,
        prompt_tokens=100,
        output_tokens=len(moments_s),
        error=error,
    )


def test_what_does_not_fit_is_left_out_and_a_shorter_one_after_it_is_not(tmp_path: Path) -> None:
    """The order is that of the list, and what is left out is said."""
    clock, done = Clock(), []

    def taking(name: str, seconds: float) -> Piece:
        def measure() -> str:
            done.append(name)
            clock.now_s += seconds
            return name

        return Piece(name, seconds, measure)

    kept = journal(tmp_path / "results.json")
    carry_out([taking("a", 30), taking("b", 40), taking("c", 20)], Budget(60, clock), kept, say=lambda _: None)
    assert done == ["a", "c"]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["results"] == {"a": "a", "c": "c"}
    assert written["not_measured"] == {"b": "needs 40 s, 30 s were left"}
    assert written["gpus"] == 2
    assert written["machine"]["cores"] > 0


def test_a_piece_that_fails_costs_no_other(tmp_path: Path) -> None:
    """Results are on disk before the next piece begins."""
    seen: list[Any] = []
    file = tmp_path / "results.json"

    def fails() -> None:
        raise RuntimeError("no GPU")

    def is_skipped() -> None:
        raise SkippedError("not packed")

    def looks() -> int:
        seen.append(json.loads(file.read_text()))
        return 1

    pieces = [Piece("fails", 1, fails), Piece("skipped", 1, is_skipped), Piece("looks", 1, looks)]
    carry_out(pieces, Budget(60), kept := journal(file), say=lambda _: None)
    assert seen[0]["not_measured"] == {"fails": "failed: RuntimeError: no GPU", "skipped": "not packed"}
    assert kept.results == {"looks": 1}


def test_pieces_are_planned_in_their_order() -> None:
    """What comes first has its time; shorter ones fill what a longer one could not."""
    pieces = [Piece(str(cost), cost, lambda: None) for cost in (30, 40, 20, 10)]
    assert [piece.cost_s for piece in fitting(pieces, 61)] == [30, 20, 10]
    assert fitting(pieces, -5) == []


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    """Of 1 to 100, in any order."""
    assert figures.percentile(reversed(range(1, 101)), share) == expected


def test_percentile_of_nothing() -> None:
    """No values, no figure."""
    assert figures.percentile([], 0.5) == 0


def test_summary_counts_goodput_and_failures() -> None:
    """The first answer is in time, the second begins too late, the third stalls between tokens, the fourth failed."""
    answers = [
        answer(0.0, 0.1, 0.11, 0.12),
        answer(1.0, 0.6, 0.61),
        answer(2.0, 0.2, 0.5),
        answer(3.0, error="503: no worker"),
    ]
    found = figures.summary(answers, GOAL)
    assert found["requests"] == 4
    assert found["failed"] == 1
    assert found["errors"] == ["503: no worker"]
    assert found["span_s"] == 2.5
    assert found["ttft_ms"] == {"mean": 300.0, "p50": 200.0, "p99": 600.0}
    assert found["longest_pause_ms"] == pytest.approx(300.0)
    assert found["goodput_per_s"] == 0.4
    assert found["goal_met"] == 0.25
    assert found["output_tokens_per_s"] == 2.8


def test_nothing_answered_is_still_a_summary() -> None:
    """A run in which all failed says so."""
    found = figures.summary([answer(0.0, error="x")], GOAL)
    assert found["failed"] == 1
    assert "ttft_ms" not in found


def test_kinds_are_summed_up_apart() -> None:
    """Short and long ones, and all of them."""
    found = figures.by_kind([answer(0, 0.1, 0.2, kind="short"), answer(0, 0.4, 0.5, kind="long")], GOAL)
    assert [found[kind]["ttft_ms"]["p50"] for kind in ("all", "short", "long")] == pytest.approx([250, 100, 400])


def test_hit_rate_is_of_what_was_asked_meanwhile() -> None:
    """Counters only grow; without questions there is no rate."""
    before = {"queries": 100.0, "hits": 50.0}
    assert figures.hit_rate(before, {"queries": 300.0, "hits": 70.0}) == 0.1
    assert figures.hit_rate(before, before) is None


def arrival(moment: int, *hash_ids: int, length: int | None = None) -> Arrival:
    """Return a request whose prompt is full blocks, unless `length` says otherwise."""
    tokens = length or 512 * len(hash_ids)
    return Arrival(timestamp=moment, input_length=tokens, output_length=100, hash_ids=list(hash_ids))


CONVERSATIONS = [
    arrival(0, 0, 1),
    arrival(10, 0, 2, 3),
    arrival(20, 0, 1, 4),
    arrival(30, 0, 5),
    arrival(40, 0, 1, 4, 6, length=2000),
]


def test_a_slice_holds_whole_conversations() -> None:
    """Whoever is in it is in it with all turns, in the trace's order; a larger slice holds the smaller one."""
    sizes = {size: traffic.take_sessions(CONVERSATIONS, size, longest=10_000) for size in (1, 2, 4, 5)}
    for taken in sizes.values():
        assert taken == sorted(taken, key=lambda each: each.timestamp)
        sessions = {each.hash_ids[1] for each in taken}
        assert taken == [each for each in CONVERSATIONS if each.hash_ids[1] in sessions]
    assert all(each in sizes[5] for each in sizes[1])
    assert sizes[5] == CONVERSATIONS


def test_too_long_prompts_are_left_out_of_a_slice() -> None:
    """By their own length, in tokens."""
    assert [each.timestamp for each in traffic.take_sessions(CONVERSATIONS, 9, longest=1536)] == [0, 10, 20, 30]


def test_the_best_hit_rate_is_that_of_one_endless_cache() -> None:
    """Of 2 + 3 + 3 + 2 + 4 blocks, 0 + 1 + 2 + 1 + 3 were there before."""
    assert traffic.best_hit_rate(CONVERSATIONS) == pytest.approx(7 / 14)


@pytest.fixture(scope="module")
def writer() -> traffic.Writer:
    """Return a writer for the demo model."""
    return traffic.Writer(demo_model(), "a")


def test_texts_have_as_many_tokens_as_asked_for(writer: traffic.Writer) -> None:
    """Counted by the model's own tokenizer; a shorter text of a name is the beginning of a longer one."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo_model() / "tokenizer.json"))
    long = writer.text("x", 700)
    assert len(tokenizer.encode(long, add_special_tokens=False).ids) == 700
    assert long.startswith(writer.text("x", 300))


def test_prompts_share_what_their_hash_ids_share(writer: traffic.Writer) -> None:
    """And nothing with those of another salt."""
    first, second = (writer.prompt(each, 0.25) for each in (CONVERSATIONS[0], CONVERSATIONS[2]))
    assert second.startswith(first)
    assert len(second.split()) == 3 * 128
    assert len(writer.prompt(CONVERSATIONS[4], 0.25).split()) == 500
    assert not writer.salted("b").prompt(CONVERSATIONS[2], 0.25).startswith(first[:100])


def test_a_replay_fills_its_window(writer: traffic.Writer) -> None:
    """Requests come as they came in the trace, faster or slower."""
    requests = traffic.replay(CONVERSATIONS, 8.0, writer, 0.25, longest_output=20)
    assert [request.due_s for request in requests] == pytest.approx([0, 2, 4, 6, 8])
    assert {request.output_tokens for request in requests} == {20}


def test_mixed_load_keeps_each_kinds_rate(writer: traffic.Writer) -> None:
    """In the order of sending, the same each time."""
    short, long = {"rate": 20.0, "tokens": 5, "output": 8}, {"rate": 2.0, "tokens": 50, "output": 2}
    requests = traffic.mixed(writer, 30.0, short, long)
    assert requests == traffic.mixed(writer, 30.0, short, long)
    assert [request.due_s for request in requests] == sorted(request.due_s for request in requests)
    assert 400 < sum(request.kind == "short" for request in requests) < 800
    assert 30 < sum(request.kind == "long" for request in requests) < 100
    assert len({request.prompt for request in requests}) == len(requests)


def test_engine_arguments_become_flags() -> None:
    """As vLLM's command line takes them."""
    arguments = {"enforce_eager": True, "enable_prefix_caching": False, "compilation_config": {"mode": 0}, "max_num_seqs": 8}
    expected = [
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--compilation-config",
        '{"mode": 0}',
        "--max-num-seqs",
        "8",
    ]
    assert flags(arguments) == expected


def test_a_peer_that_is_not_there_is_skipped(tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises(SkippedError, match="vllm_router is not in"):
        peer("vllm-router/cache_aware", {"http://127.0.0.1:1": ""}, tmp_path)


@pytest.mark.parametrize("gpus", [2, 4])
def test_all_graphs_suit_a_gpu_machine(gpus: int, tmp_path: Path) -> None:
    """Every part is a graph that can be planned there, and each engine gets its GPU."""
    names = tuple(str(index) for index in range(gpus))
    host = Host(names, demo_model(), ON_GPU | {"kv_cache_memory_bytes": 2**30})
    fleet = Fleet(host, gpus, tmp_path, "nats://127.0.0.1:4222")
    disagg, _ = disaggregated(host, gpus // 2, gpus // 2, tmp_path, 24)
    used = {}
    for command in (fleet.workers(), fleet.router("round_robin"), disagg):
        words = list(command.argv)
        graph = load_graph(Path(words[4]), words[6::2])
        engine = graph.components.decode.engine if graph.components.decode else None
        assert isinstance(engine, VllmEngine)
        assert mistaken_arg(engine.args) is None
        plan = make_plan(graph, Machine(gpus=names))
        used[command.name] = {process.name: process.gpus for process in plan.processes if process.gpus}
    assert used["penstock-round_robin"] == {}
    assert [gpu for place in used["penstock-workers"].values() for gpu in place] == list(names)
    assert sorted(gpu for place in used["penstock-disagg"].values() for gpu in place) == list(names)


def test_a_program_is_waited_for_and_ends_with_all_it_started(tmp_path: Path) -> None:
    """What it leaves behind is killed."""
    code = (
        "import subprocess, time; subprocess.Popen(['sleep', '60']); print('is ready after 1 s', flush=True)\ntime.sleep(60)"
    )
    with started([Command("sleeper", [sys.executable, "-c", code], "", "")], tmp_path, 20) as (running,):
        assert running.ready_s > 0
        family = running.family()
        assert len(family) == 2
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_program_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    """So that the results say why."""
    dies = Command("dies", [sys.executable, "-c", "import sys; print('last words'); sys.exit(3)"], "", "")
    with pytest.raises(RuntimeError, match="dies ended with 3: last words"), started([dies], tmp_path, 20):
        pass
