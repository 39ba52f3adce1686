"""Tests for the books: they add up whatever happens, learn speed, and forget what is gone."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from components.router.cost import CostSettings, Load
from components.router.fleet import SETTLE_S, Fleet
from components.router.rate import Rate
from components.wire.process import WorkerLoad, WorkerStatus

WORKERS = st.sampled_from(["a", "b", "c"])
IDS = st.sampled_from([f"r{i}" for i in range(12)])


def status(running: int = 0, waiting: int = 0, kv_usage: float = 0.0) -> WorkerStatus:
    """A worker's word: 100 blocks of 10 tokens."""
    load = WorkerLoad(running_requests=running, waiting_requests=waiting, kv_usage=kv_usage)
    return WorkerStatus(model="demo", max_model_len=1000, block_size=10, kv_blocks=100, load=load)


def fleet_of(*workers: str) -> Fleet:
    """A fleet of idle workers at time 0."""
    fleet = Fleet(CostSettings())
    for worker in workers:
        fleet.update(worker, "first", status(), 0.0)
    return fleet


class Books(RuleBasedStateMachine):
    """Random notices in any order, lost ones, doubled ones; the loads equal those of a plain list of requests."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(CostSettings())
        self.workers: dict[str, str] = {}
        self.requests: dict[str, tuple[str, int, int, bool, float]] = {}  # worker, tokens, uncached, prefilling, deadline
        self.now_s = 0.0

    @rule(worker=WORKERS, incarnation=st.sampled_from(["one", "two"]))
    def tell(self, worker: str, incarnation: str) -> None:
        """A worker tells of itself, with a count high enough to correct nothing."""
        fresh = self.fleet.update(worker, incarnation, status(running=99), self.now_s)
        assert fresh == (self.workers.get(worker) != incarnation)
        if fresh:
            self.drop(worker)
        self.workers[worker] = incarnation

    @rule(worker=WORKERS)
    def leave(self, worker: str) -> None:
        """A worker is gone."""
        self.fleet.forget(worker)
        self.workers.pop(worker, None)
        self.drop(worker)

    def drop(self, worker: str) -> None:
        """Take a worker's requests out of the model."""
        self.requests = {key: entry for key, entry in self.requests.items() if entry[0] != worker}

    @rule(key=IDS, worker=WORKERS, uncached=st.integers(0, 50), cached=st.integers(0, 50), lifetime=st.integers(1, 9))
    def reserve(self, key: str, worker: str, uncached: int, cached: int, lifetime: int) -> None:
        """A request is routed, perhaps a second time, perhaps to somebody who is not there."""
        tokens, deadline_s = uncached + cached, self.now_s + lifetime
        self.fleet.reserve(key, worker, tokens=tokens, uncached_tokens=uncached, now_s=self.now_s, deadline_s=deadline_s)
        self.requests.pop(key, None)
        if worker in self.workers:
            self.requests[key] = (worker, tokens, uncached, True, deadline_s)

    @rule(key=IDS)
    def first_token(self, key: str) -> None:
        """A first token, perhaps of a request that is gone, perhaps told twice."""
        self.fleet.first_token(key, self.now_s)
        if key in self.requests:
            worker, tokens, uncached, _, deadline_s = self.requests[key]
            self.requests[key] = (worker, tokens, uncached, False, deadline_s)

    @rule(key=IDS)
    def finish(self, key: str) -> None:
        """An end, perhaps told twice."""
        self.fleet.finish(key)
        self.requests.pop(key, None)

    @rule(step=st.integers(1, 4))
    def wait(self, step: int) -> None:
        """Time passes; deadlines end what nobody told the end of."""
        self.now_s += step
        late = [key for key, entry in self.requests.items() if entry[4] <= self.now_s]
        assert self.fleet.expire(self.now_s) == len(late)
        for key in late:
            del self.requests[key]

    @invariant()
    def books_add_up(self) -> None:
        """What is queued and active on each worker is the sum over its requests."""
        assert sorted(self.fleet.workers()) == sorted(self.workers)
        assert self.fleet.requests() == len(self.requests)
        for worker in self.workers:
            mine = [entry for entry in self.requests.values() if entry[0] == worker]
            load = self.fleet.load(worker)
            assert load.queued_tokens == sum(entry[2] for entry in mine if entry[3])
            assert load.active_tokens == sum(entry[1] for entry in mine)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_the_workers_own_count_ends_requests_whose_finish_was_lost() -> None:
    """Settled requests beyond the worker's count are gone, oldest first; young ones may not be counted yet."""
    fleet = fleet_of("a")
    for number in range(4):
        fleet.reserve(f"r{number}", "a", tokens=100, uncached_tokens=100, now_s=0.0, deadline_s=600.0)
    fleet.reserve("young", "a", tokens=7, uncached_tokens=7, now_s=SETTLE_S, deadline_s=600.0)
    fleet.update("a", "first", status(running=1, waiting=1), SETTLE_S)
    assert fleet.requests() == 3
    assert fleet.load("a").queued_tokens == 207


def test_a_restarted_worker_starts_with_clean_books() -> None:
    """Its requests died with the process before; late notices of them change nothing."""
    fleet = fleet_of("a")
    fleet.reserve("r", "a", tokens=10, uncached_tokens=10, now_s=0.0, deadline_s=600.0)
    assert fleet.update("a", "second", status(), 1.0)
    fleet.first_token("r", 1.5)
    fleet.finish("r")
    assert fleet.load("a") == Load(requests=0, queued_tokens=0, active_tokens=0, free_kv_tokens=1000)


def test_a_worker_that_tells_of_more_than_we_routed_is_believed() -> None:
    """Others send to it too: its own count and KV use are a lower bound of its load."""
    fleet = fleet_of("a")
    fleet.update("a", "first", status(running=5, waiting=2, kv_usage=0.25), 1.0)
    assert fleet.load("a") == Load(requests=7, queued_tokens=0, active_tokens=250, free_kv_tokens=750)


def test_deadlines_kept_are_few_however_many_requests_come_and_go() -> None:
    """A finished request's deadline does not stay on the heap for ten minutes."""
    fleet = fleet_of("a")
    for number in range(5000):
        fleet.reserve(f"r{number}", "a", tokens=1, uncached_tokens=1, now_s=0.0, deadline_s=600.0)
        fleet.finish(f"r{number}")
    assert len(fleet._deadlines) <= 65


def test_speed_is_learned_from_the_time_to_the_first_token() -> None:
    """Work queued ahead is part of what was waited for, so a queue does not make a worker look slow."""
    fleet = fleet_of("a")
    for number in range(8):
        now_s = float(number)
        fleet.reserve(f"x{number}", "a", tokens=1000, uncached_tokens=1000, now_s=now_s, deadline_s=600.0)
        fleet.reserve(f"y{number}", "a", tokens=1000, uncached_tokens=1000, now_s=now_s, deadline_s=600.0)
        fleet.first_token(f"x{number}", now_s + 0.1)
        fleet.first_token(f"y{number}", now_s + 0.2)
        fleet.finish(f"x{number}")
        fleet.finish(f"y{number}")
    assert fleet.speed("a").prefill_s_per_token == pytest.approx(1e-4)


def test_loading_is_learned_apart_from_computing() -> None:
    """What remains of the time after the computing is the loading."""
    fleet = fleet_of("a")
    for number in range(8):
        for fetch_tokens, ttft_s in ((0, 0.05), (5000, 0.15)):
            fleet.reserve(
                "r",
                "a",
                tokens=1000 + fetch_tokens,
                uncached_tokens=1000,
                fetch_tokens=fetch_tokens,
                now_s=float(number),
                deadline_s=600.0,
            )
            fleet.first_token("r", number + ttft_s)
            fleet.finish("r")
    assert fleet.speed("a").prefill_s_per_token == pytest.approx(5e-5)
    assert fleet.speed("a").fetch_s_per_token == pytest.approx(2e-5)


def learned(
    tokens: int, uncached: int, fetch: int, cached: int | None, ttft_s: float, queued: int = 0
) -> tuple[float, float]:
    """Return both rates, in microseconds a token, after eight such requests."""
    fleet = fleet_of("a")
    for number in range(8):
        fleet.reserve("other", "a", tokens=queued, uncached_tokens=queued, now_s=float(number), deadline_s=600.0)
        fleet.reserve(
            "r", "a", tokens=tokens, uncached_tokens=uncached, fetch_tokens=fetch, now_s=float(number), deadline_s=600.0
        )
        fleet.first_token("r", number + ttft_s, cached)
        fleet.finish("r")
        fleet.finish("other")
    speed = fleet.speed("a")
    return round(speed.prefill_s_per_token * 1e6, 1), round(speed.fetch_s_per_token * 1e6, 1)


def test_a_wrong_prediction_teaches_no_load_time() -> None:
    """The engine computed what could not be loaded: that is computing, all of it."""
    assert learned(5000, 1000, 4000, cached=0, ttft_s=0.5) == (100.0, 4.0)
    assert learned(5000, 1000, 4000, cached=4000, ttft_s=0.068) == (28.0, 10.0)
    assert learned(5000, 1000, 4000, cached=None, ttft_s=0.068) == (28.0, 10.0)


def test_a_remote_prefill_teaches_what_it_took_and_no_load_time() -> None:
    """Far more was cached than predicted; whoever was queued on this worker did not delay it."""
    assert learned(5000, 4000, 1000, cached=4990, ttft_s=0.4, queued=3000) == (100.0, 4.0)
    assert learned(5000, 5000, 0, cached=4990, ttft_s=0.5, queued=3000) == (100.0, 4.0)


def test_a_little_loading_beside_much_computing_teaches_nothing() -> None:
    """It is the small difference of two large times."""
    assert learned(5000, 4000, 1000, cached=1000, ttft_s=0.5) == (28.0, 4.0)


def test_a_rate_starts_sane_then_goes_by_the_fleet_then_by_the_worker() -> None:
    """Four samples are enough for either."""
    rate = Rate(1.0)
    assert rate.seconds("a") == 1.0
    for _ in range(4):
        rate.observe("a", 10, 20.0)
    assert rate.seconds("a") == rate.seconds("newcomer") == 2.0
    for _ in range(4):
        rate.observe("b", 10, 50.0)
    assert rate.seconds("b") == 5.0
    rate.forget("b")
    assert rate.seconds("b") == 2.0


def test_small_differences_between_workers_are_noise() -> None:
    """Else the one that was lucky would get all requests while nobody is busy."""
    rate = Rate(1.0)
    for worker, seconds in (("a", 19.0), ("b", 20.0), ("c", 37.0), ("d", 41.0), ("e", 9.0)):
        for _ in range(5):
            rate.observe(worker, 10, seconds)
    assert [rate.seconds(worker) for worker in "abcde"] == [2.0, 2.0, 2.0, 4.1, 0.9]


def test_a_worker_that_was_slow_once_is_tried_again() -> None:
    """An engine compiles at its first prompts; nobody sends it a second one as long as that is all that is known of it."""
    rate = Rate(1.0)
    for _ in range(4):
        rate.observe("fast", 10, 10.0)
        rate.observe("slow at first", 10, 500.0)
    assert rate.seconds("slow at first") == 50.0
    for _ in range(100):
        rate.observe("fast", 10, 10.0)
    assert rate.seconds("slow at first") == 50.0
    for _ in range(100):
        rate.observe("fast", 10, 10.0)
    assert rate.seconds("slow at first") == 1.0
    for _ in range(4):
        rate.observe("slow at first", 10, 500.0)
    assert rate.seconds("slow at first") == 50.0


def test_a_slow_worker_in_use_stays_known_as_slow() -> None:
    """It is seen again and again, however rarely beside the others."""
    rate = Rate(1.0)
    for number in range(1000):
        rate.observe("fast", 10, 10.0)
        if number < 4 or number % 50 == 0:
            rate.observe("slow", 10, 500.0)
    assert rate.seconds("slow") == 50.0


def test_outliers_and_small_work_do_not_move_a_rate() -> None:
    """A stalled client, a broken clock and fixed overheads of tiny prompts are outweighed."""
    rate = Rate(1e-4)
    for _ in range(10):
        rate.observe("a", 1000, 0.05)
        rate.observe("a", 10, 0.02)
    for seconds in (0.0, -1.0, 1e9, 20.0):
        rate.observe("a", 1000, seconds)
    rate.observe("a", 0, 1.0)
    assert rate.seconds("a") == pytest.approx(5e-5)
