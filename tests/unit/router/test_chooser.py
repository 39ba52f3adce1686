"""Tests for decisions: where requests go, in the situations routers are known to fail in, and what they cost and why."""

import random
from collections import Counter

import pytest

from components.router.chooser import RECENT_TTL_S, Chooser
from components.router.cost import CostSettings, Load, Overlap, Prompt, Speed, price
from components.router.policies import POLICIES, make_policy
from components.router.policies.policy import PolicySettings
from components.wire.process import WorkerLoad, WorkerStatus

BLOCK_SIZE = 32
LATER_S = 600.0


def chooser_of(count: int, policy: str = "kv", settings: PolicySettings | None = None) -> Chooser:
    """Some idle workers ``w0`` … under one policy."""
    chooser = Chooser(make_policy(policy, settings or PolicySettings(), random.Random(7)), BLOCK_SIZE, CostSettings())
    for number in range(count):
        tell(chooser, f"w{number}")
    return chooser


def tell(chooser: Chooser, worker: str, store: str = "", **load: float) -> None:
    """A worker tells of itself."""
    told = WorkerLoad(**load)  # type: ignore[arg-type]
    status = WorkerStatus("demo", 65536, BLOCK_SIZE, 16384, told, store=store)
    chooser.fleet.update(worker, "first", status, 0.0)


def prompt_of(blocks: int, start: int = 0, tokens: int | None = None, session: str | None = None) -> Prompt:
    """A prompt of so many blocks and one more token; different `start`, different prompt."""
    hashes = list(range(start * 100_000, start * 100_000 + blocks))
    return Prompt(hashes, blocks * BLOCK_SIZE + 1 if tokens is None else tokens, session)


def choose(chooser: Chooser, request_id: str, prompt: Prompt, now_s: float = 1.0) -> str:
    """Return where a request goes."""
    choice = chooser.choose(request_id, prompt, now_s, LATER_S).choice
    assert choice is not None
    return choice.worker


def test_a_request_goes_where_its_prefix_is() -> None:
    """All else equal, cached blocks decide, and the explanation says how many."""
    chooser = chooser_of(4)
    prompt = prompt_of(100)
    chooser.device.stored("w2", prompt.blocks)
    decision = chooser.choose("r", prompt, 1.0, LATER_S)
    assert decision.choice is not None
    assert decision.choice.worker == "w2"
    assert [each.overlap_blocks for each in decision.candidates] == [0, 0, 100, 0]
    assert [each.uncached_tokens for each in decision.candidates] == [3201, 3201, 1, 3201]


def test_a_busy_holder_is_passed_over_when_waiting_costs_more_than_computing() -> None:
    """And not before."""
    chooser = chooser_of(2)
    prompt = prompt_of(100)
    chooser.device.stored("w0", prompt.blocks)
    chooser.fleet.reserve("long", "w0", tokens=3000, uncached_tokens=3000, now_s=1.0, deadline_s=LATER_S)
    assert chooser.explain(prompt, 1.0).choice.worker == "w0"  # type: ignore[union-attr]
    chooser.fleet.reserve("longer", "w0", tokens=3000, uncached_tokens=3000, now_s=1.0, deadline_s=LATER_S)
    assert chooser.explain(prompt, 1.0).choice.worker == "w1"  # type: ignore[union-attr]


def test_distinct_prompts_in_one_instant_spread_evenly() -> None:
    """Each choice is booked before the next one is made."""
    chooser = chooser_of(8)
    went = Counter(choose(chooser, f"r{i}", prompt_of(50, start=i)) for i in range(80))
    assert set(went.values()) == {10}


def test_one_new_prefix_many_times_at_once_is_computed_in_few_places() -> None:
    """Neither a herd on one worker nor the same prefill on all."""
    chooser = chooser_of(8)
    choices = [chooser.choose(f"r{i}", prompt_of(200), 1.0, LATER_S).choice for i in range(24)]
    computed = sum(choice.uncached_tokens > 1000 for choice in choices if choice)
    went = Counter(choice.worker for choice in choices if choice)
    assert 2 <= computed == len(went) <= 6
    assert max(went.values()) <= 12


def test_a_prompt_just_routed_counts_as_cached_for_two_seconds() -> None:
    """Then only events count."""
    chooser = chooser_of(3)
    prompt = prompt_of(100)
    first = choose(chooser, "r", prompt, 1.0)
    expected = {each.worker: each.expected_blocks for each in chooser.explain(prompt, 1.0 + RECENT_TTL_S - 0.01).candidates}
    assert expected == {worker: 100 if worker == first else 0 for worker in ("w0", "w1", "w2")}
    after = chooser.explain(prompt, 1.0 + RECENT_TTL_S).candidates
    assert [each.expected_blocks for each in after] == [0, 0, 0]


def test_ties_are_broken_evenly() -> None:
    """Equal workers get equal shares, also when each request ends before the next begins."""
    chooser = chooser_of(4)
    went: Counter[str] = Counter()
    for i in range(2000):
        went[choose(chooser, "r", prompt_of(0, tokens=5), float(i))] += 1
        chooser.fleet.finish("r")
    assert all(400 < count < 600 for count in went.values())


def test_what_any_worker_can_load_is_worth_something_everywhere() -> None:
    """KV in LMCache makes an idle worker of its host nearly as good as the holder; the holder still wins a tie."""
    chooser = chooser_of(3)
    for worker, store in (("w0", "lmcache-0"), ("w1", "lmcache-0"), ("w2", "lmcache-b-0")):
        tell(chooser, worker, store)
    prompt = prompt_of(100)
    chooser.device.stored("w0", prompt.blocks)
    chooser.shared.stored("lmcache-0", prompt.blocks)
    w0, w1, w2 = chooser.explain(prompt, 1.0).candidates
    assert (w0.fetch_blocks, w1.fetch_blocks, w2.fetch_blocks) == (0, 100, 0)
    assert w0.cost_s < w1.cost_s
    chooser.fleet.reserve("other", "w0", tokens=1000, uncached_tokens=1000, now_s=1.0, deadline_s=LATER_S)
    assert choose(chooser, "r", prompt) == "w1"


def fetching(cached_tokens: int | None, worker: str = "w0") -> tuple[int, int]:
    """Two workers are to load the same 100 blocks; return what is left of the prediction when the first token is out.

    Returns:
        How many blocks the store is said to hold now, and how many predictions are kept.
    """
    chooser, prompt = chooser_of(0), prompt_of(100)
    tell(chooser, "w0", "lmcache-0")
    chooser.shared.stored("lmcache-0", prompt.blocks)
    chooser.choose("r", prompt, 1.0, LATER_S)
    chooser.first_token("r", worker, 1.1, cached_tokens)
    chooser.finish("r")
    held = chooser.held(prompt, LATER_S).shared
    return held.get("lmcache-0", 0), len(chooser.predictions)


@pytest.mark.parametrize(
    ("cached_tokens", "held"),
    [(3200, 100), (3201, 100), (640, 20), (650, 20), (0, 0), (None, 100), (-1, 100)],
)
def test_what_a_store_did_not_supply_is_predicted_no_more(cached_tokens: int | None, held: int) -> None:
    """Evicted without a word: costs one request time. What it did supply stays."""
    assert fetching(cached_tokens) == (held, 0)


def test_another_worker_proves_nothing() -> None:
    """The request went elsewhere in the end."""
    assert fetching(0, worker="w9") == (100, 0)


def test_a_replica_corrects_by_what_another_one_chose() -> None:
    """It is told of the choice and hears the same first token."""
    chooser, prompt = chooser_of(0), prompt_of(100)
    tell(chooser, "w0", "lmcache-0")
    chooser.shared.stored("lmcache-0", prompt.blocks)
    chooser.note("r", prompt, "w0", 1, 1.0, LATER_S, fetch_blocks=100)
    chooser.first_token("r", "w0", 1.1, 640)
    assert chooser.held(prompt, LATER_S).shared == {"lmcache-0": 20}


def test_a_worker_without_room_for_the_context_costs_more() -> None:
    """KV memory that is full means waiting, whatever else looks idle."""
    chooser = chooser_of(2)
    tell(chooser, "w0", kv_usage=1.0)
    decision = chooser.explain(prompt_of(50), 1.0)
    assert decision.candidates[0].memory_s > 0
    assert decision.choice is decision.candidates[1]


def test_no_worker_no_choice() -> None:
    """The service decides what that means."""
    assert chooser_of(0).choose("r", prompt_of(1), 1.0, LATER_S).choice is None
    assert chooser_of(1).choose("r", prompt_of(1), 1.0, LATER_S, excluded={"w0"}).choice is None


def test_an_excluded_worker_is_not_chosen() -> None:
    """A request that just failed there goes elsewhere, although its prefix is there."""
    chooser = chooser_of(2)
    prompt = prompt_of(10)
    chooser.device.stored("w0", prompt.blocks)
    decision = chooser.choose("r", prompt, 1.0, LATER_S, excluded={"w0"})
    assert [each.worker for each in decision.candidates] == ["w1"]


def test_a_dry_run_changes_nothing() -> None:
    """Asking why, however often, moves no load and no memory."""
    for name in POLICIES:
        chooser = chooser_of(3, name, PolicySettings(session_ttl_s=60))
        for _ in range(5):
            chooser.explain(prompt_of(10, session="s"), 1.0)
        assert chooser.fleet.requests() == 0
        assert all(each.expected_blocks == 0 for each in chooser.explain(prompt_of(10), 1.0).candidates)


def test_a_distrusted_worker_scores_nothing_and_keeps_its_books() -> None:
    """Lost events void its blocks, not its requests."""
    chooser = chooser_of(1)
    prompt = prompt_of(10)
    chooser.device.stored("w0", prompt.blocks)
    choose(chooser, "r", prompt)
    chooser.distrust("w0")
    (candidate,) = chooser.explain(prompt, 1.0).candidates
    assert candidate.expected_blocks == 0
    assert candidate.load.requests == 1


def test_what_a_policy_remembers_by_itself_outlives_lost_events() -> None:
    """No event told it; a restart ends it."""
    chooser = chooser_of(1, "approximate")
    prompt = prompt_of(10)
    choose(chooser, "r", prompt)
    later_s = 1.0 + 2 * RECENT_TTL_S
    chooser.distrust("w0")
    assert chooser.explain(prompt, later_s).candidates[0].expected_blocks == 10
    chooser.restarted("w0")
    assert chooser.explain(prompt, later_s).candidates[0].expected_blocks == 0


def test_a_forgotten_worker_is_gone_everywhere() -> None:
    """Blocks, books and memories."""
    chooser = chooser_of(2)
    prompt = prompt_of(10)
    chooser.device.stored("w0", prompt.blocks)
    chooser.choose("r", prompt, 1.0, LATER_S)
    chooser.forget("w0")
    decision = chooser.explain(prompt, 1.0)
    assert [each.worker for each in decision.candidates] == ["w1"]
    assert chooser.fleet.requests() == 0
    assert chooser.device.workers() == {}


def test_round_robin_takes_turns_and_lets_newcomers_in() -> None:
    """Everybody once before anybody twice."""
    chooser = chooser_of(3, "round_robin")
    assert [choose(chooser, f"r{i}", prompt_of(5)) for i in range(6)] == ["w0", "w1", "w2"] * 2
    tell(chooser, "w3")
    assert choose(chooser, "r6", prompt_of(5)) == "w3"


def test_random_uses_everybody_alike() -> None:
    """Whatever is cached or queued."""
    chooser = chooser_of(4, "random")
    chooser.device.stored("w0", prompt_of(50).blocks)
    went = Counter(choose(chooser, f"r{i}", prompt_of(50)) for i in range(2000))
    assert all(400 < count < 600 for count in went.values())


def test_least_loaded_counts_requests_and_ignores_caches() -> None:
    """The holder of the prefix gets it only when it is the idlest."""
    chooser = chooser_of(2, "least_loaded")
    prompt = prompt_of(50)
    chooser.device.stored("w0", prompt.blocks)
    chooser.fleet.reserve("x", "w0", tokens=1, uncached_tokens=1, now_s=1.0, deadline_s=LATER_S)
    assert choose(chooser, "r", prompt) == "w1"


def test_approximate_needs_no_events_and_forgets_in_time() -> None:
    """It goes by its own choices, not by the index."""
    chooser = chooser_of(4, "approximate", PolicySettings(ttl_s=60.0))
    prompt = prompt_of(100)
    first = choose(chooser, "r", prompt, 1.0)
    chooser.fleet.finish("r")
    other = next(worker for worker in chooser.fleet.workers() if worker != first)
    chooser.device.stored(other, prompt.blocks)
    assert chooser.explain(prompt, 50.0).choice.worker == first  # type: ignore[union-attr]
    assert all(each.overlap_blocks == 0 for each in chooser.explain(prompt, 62.0).candidates)


def test_temperature_spreads_by_cost() -> None:
    """A worker that costs one temperature more gets 1 / e of the cheapest one's share."""
    chooser = chooser_of(2, "kv", PolicySettings(temperature_s=0.1))
    gap_tokens = round(0.1 / CostSettings().prefill_s_per_token)
    chooser.fleet.reserve("x", "w1", tokens=1, uncached_tokens=gap_tokens, now_s=1.0, deadline_s=LATER_S)
    went = Counter(chooser.explain(prompt_of(1), 1.0).choice.worker for _ in range(4000))  # type: ignore[union-attr]
    assert went["w1"] / went["w0"] == pytest.approx(0.37, abs=0.05)


def test_a_session_stays_until_it_costs_too_much_then_alone_moves() -> None:
    """Affinity gives way for the session that meets a hot worker; others keep theirs."""
    chooser = chooser_of(3, "least_loaded", PolicySettings(session_ttl_s=60.0, session_patience_s=0.1))
    seats = {}
    for session in ("one", "two", "three"):
        seats[session] = choose(chooser, session, prompt_of(1, session=session))
    assert len(set(seats.values())) == 3
    hot = seats["one"]
    chooser.fleet.reserve("big", hot, tokens=9000, uncached_tokens=9000, now_s=1.0, deadline_s=LATER_S)
    assert choose(chooser, "a", prompt_of(1, session="one"), 2.0) != hot
    for session in ("two", "three"):
        assert choose(chooser, f"b{session}", prompt_of(1, session=session), 2.0) == seats[session]


def test_an_idle_session_is_forgotten() -> None:
    """After its time it is a stranger."""
    chooser = chooser_of(2, "round_robin", PolicySettings(session_ttl_s=10.0))
    assert choose(chooser, "a", prompt_of(1, session="s"), 1.0) == "w0"
    assert choose(chooser, "b", prompt_of(1, session="s"), 10.0) == "w0"
    assert choose(chooser, "c", prompt_of(1, session="s"), 20.5) == "w1"


def test_an_unknown_policy_is_refused_by_name() -> None:
    """The text lists what there is."""
    with pytest.raises(ValueError, match=r"'fastest'; there are kv, approximate, round_robin, random, least_loaded"):
        make_policy("fastest", PolicySettings(), random.Random(7))


def test_the_block_with_the_last_token_never_counts() -> None:
    """An engine computes the last token of a prompt that is cached whole."""
    settings = CostSettings()
    speed = Speed(settings.prefill_s_per_token, settings.fetch_s_per_token)
    full = price("w", prompt_of(4, tokens=128), BLOCK_SIZE, Overlap(4, 4, 4), Load(), speed, settings)
    assert (full.overlap_blocks, full.expected_blocks, full.fetch_blocks, full.uncached_tokens) == (3, 3, 0, 32)
    empty = price("w", Prompt([], 0), BLOCK_SIZE, Overlap(), Load(), speed, settings)
    assert (empty.uncached_tokens, empty.cost_s) == (0, 0)


def test_the_terms_add_up_to_the_cost() -> None:
    """What is explained is what was decided on."""
    settings = CostSettings(occupancy_weight=0.5, decode_weight=0.25)
    load = Load(requests=3, queued_tokens=100, active_tokens=400, free_kv_tokens=50)
    candidate = price("w", prompt_of(10), BLOCK_SIZE, Overlap(2, 4, 7), load, Speed(1.0, 0.5), settings)
    assert candidate.uncached_tokens == 321 - 7 * 32
    assert (candidate.prefill_s, candidate.fetch_s, candidate.queue_s) == (97.0, 48.0, 100.0)
    assert (candidate.decode_s, candidate.memory_s) == (100.0, 97.0 + 100.0 - 50.0)
    assert candidate.cost_s == 97.0 * 1.5 + 48.0 + 100.0 + 100.0 + 147.0
