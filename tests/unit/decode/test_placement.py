"""Where a prompt is prefilled: every reason, the cost rule, and what is learned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from components.decode.placement import Reason, Situation, Speeds, given_up, place
from components.graph.schema import Disagg

RULES = Disagg(max_local_prefill_tokens=512, max_queue_depth=4, max_queue_age_s=2.0)
QUIET = Situation(
    prompt_tokens=4096,
    near_tokens=0,
    prefill_workers=1,
    queue_depth=0,
    queue_age_s=0.0,
    running_requests=0,
    waiting_requests=0,
)
SPEEDS = Speeds(prefill_s_per_token=1e-3, load_s_per_token=1e-4, job_tokens=1000.0, overhead_s=0.01)


@pytest.mark.parametrize(
    ("now", "rules", "reason"),
    [
        (QUIET, RULES, Reason.PAYS),
        (QUIET, replace(RULES, enabled=False), Reason.OFF),
        (replace(QUIET, prompt_tokens=512), RULES, Reason.SHORT),
        (replace(QUIET, prompt_tokens=513), RULES, Reason.PAYS),
        (replace(QUIET, near_tokens=4096 - 512), RULES, Reason.SHORT),
        (replace(QUIET, near_tokens=4096 - 513), RULES, Reason.PAYS),
        (replace(QUIET, prefill_workers=0), RULES, Reason.NO_PREFILL_WORKER),
        (replace(QUIET, queue_depth=None), RULES, Reason.QUEUE_UNKNOWN),
        (replace(QUIET, queue_depth=4), RULES, Reason.QUEUE_DEEP),
        (replace(QUIET, queue_depth=1, queue_age_s=2.1), RULES, Reason.QUEUE_OLD),
        (replace(QUIET, queue_depth=1, queue_age_s=2.0), RULES, Reason.PAYS),
        (replace(QUIET, queue_depth=3), replace(RULES, max_queue_age_s=9), Reason.PAYS),
        (replace(QUIET, queue_depth=0, queue_age_s=99.0), RULES, Reason.PAYS),  # what is under way is old, nothing waits
    ],
)
def test_every_threshold(now: Situation, rules: Disagg, reason: Reason) -> None:
    """The first that is not kept is the reason; the border itself is still kept."""
    placement = place(now, rules, SPEEDS)
    assert (placement.reason, placement.remote) == (reason, reason is Reason.PAYS)


def test_it_must_pay() -> None:
    """A queue of long jobs costs more than computing here, unless nobody asks, or more workers share it."""
    now = replace(QUIET, prompt_tokens=1000, queue_depth=3)
    placement = place(now, RULES, SPEEDS)
    assert (placement.reason, placement.remote) == (Reason.DEAR, False)
    assert placement.remote_s > placement.local_s
    assert place(now, replace(RULES, always=True), SPEEDS).reason is Reason.PAYS
    assert place(replace(now, prefill_workers=4), RULES, SPEEDS).reason is Reason.PAYS


def test_what_computing_here_costs() -> None:
    """This request waits and so does every stream, at least one to come; what waits already goes first."""
    assert place(QUIET, RULES, SPEEDS).local_s == pytest.approx(4.096 * 2)
    assert place(replace(QUIET, running_requests=3), RULES, SPEEDS).local_s == pytest.approx(4.096 * 4)
    assert place(replace(QUIET, waiting_requests=2), RULES, SPEEDS).local_s == pytest.approx(4.096 * 2 + 2.0)


def test_what_others_cost() -> None:
    """Jobs ahead by the workers that share them, computing and loading what is uncached, and the way there."""
    assert place(QUIET, RULES, SPEEDS).remote_s == pytest.approx(4.096 * 1.1 + 0.01)
    ahead = place(replace(QUIET, queue_depth=2, prefill_workers=2), RULES, SPEEDS)
    assert ahead.remote_s == pytest.approx(1.0 + 4.096 * 1.1 + 0.01)
    cached = place(replace(QUIET, near_tokens=2048), RULES, SPEEDS)
    assert cached.remote_s == pytest.approx(2.048 * 1.1 + 0.01)


@given(running=st.integers(0, 64), depth=st.integers(0, 3), near=st.integers(0, 5000))
def test_more_streams_here_never_bring_a_prompt_home(running: int, depth: int, near: int) -> None:
    """What goes elsewhere beside some streams goes elsewhere beside one more."""
    now = replace(QUIET, running_requests=running, queue_depth=depth, near_tokens=near)
    if place(now, RULES, SPEEDS).remote:
        assert place(replace(now, running_requests=running + 1), RULES, SPEEDS).remote


def test_what_is_near_may_be_more_than_the_prompt() -> None:
    """A lookup rounded up counts as nothing to compute, not as less."""
    assert replace(QUIET, near_tokens=9999).uncached_tokens == 0


def test_the_median_of_measurements_counts() -> None:
    """One that was disturbed changes nothing; only the one that was measured changes."""
    speeds = Speeds(prefill_s_per_token=1.0, overhead_s=0.5)
    for value in (2.0, 2.0, 90.0):
        speeds.measured("prefill_s_per_token", value)
    assert (speeds.prefill_s_per_token, speeds.overhead_s) == (2.0, 0.5)
    for _ in range(50):
        speeds.measured("prefill_s_per_token", 3.0)
    assert speeds.prefill_s_per_token == 3.0


def test_what_is_learned_from_a_remote_prefill() -> None:
    """Computing, and what is neither computing nor the queue; loading is told by itself."""
    speeds = Speeds()
    speeds.prefilled(1000, prefill_s=0.5, queued_s=0.2, whole_s=0.8)
    speeds.loaded(1000, 0.1)
    learned = (speeds.prefill_s_per_token, speeds.job_tokens, speeds.overhead_s, speeds.load_s_per_token)
    assert learned == pytest.approx((0.5e-3, 1000, 0.1, 1e-4))


def test_how_long_is_waited() -> None:
    """For a start not as long as for the end; the border itself is still waited for."""
    rules = replace(RULES, max_queue_age_s=2.0, max_wait_s=10.0)
    assert given_up(2.0, rules, taken=False) is None
    assert given_up(2.1, rules, taken=False) == "not_started"
    assert given_up(10.0, rules, taken=True) is None
    assert given_up(10.1, rules, taken=True) == "late"
