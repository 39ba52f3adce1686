"""Token batches are handed out in order, and what is missing is noticed."""

from hypothesis import given
from hypothesis import strategies as st

from components.processor.fleet import Worker
from components.processor.streams import Attempt, Inbox, Patience, Streams
from components.wire.errors import ErrorCode, ErrorReply, NoWorkerError, OverloadedError
from components.wire.messages import FinishReason, TokenBatch, TokenDelta
from components.wire.process import WorkerStatus

WORKER = Worker("w", "1", WorkerStatus("demo", 100, 32, 10), accepting=True, heard_s=0.0)


def streams(*names: str, inbox: Inbox | None = None) -> tuple[Streams, list[Attempt]]:
    """Return streams with an open attempt for each name, sent at time 0."""
    made = Streams(Patience(first_token_s=10, inactivity_s=5))
    attempts = [Attempt(name, index, WORKER, inbox or Inbox(), 0.0) for index, name in enumerate(names)]
    for attempt in attempts:
        made.open(attempt)
    return made, attempts


def batch(seq: int, *deltas: TokenDelta, incarnation: str = "1") -> TokenBatch:
    """Return a batch of the worker."""
    return TokenBatch("w", incarnation, seq, list(deltas))


def delta(name: str, offset: int, tokens: int = 1, end: bool = False) -> TokenDelta:
    """Return a delta with so many tokens."""
    return TokenDelta(name, offset, [7] * tokens, finish_reason=FinishReason.STOP if end else None)


async def taken(attempt: Attempt) -> list[TokenDelta]:
    """Return what waits in an attempt's inbox."""
    return [delta for _, delta in await attempt.inbox.take()]


def lost(deltas: list[TokenDelta]) -> list[bool]:
    """Return which of them say that the worker is lost."""
    return [delta.error is not None and delta.error.code is ErrorCode.WORKER_LOST for delta in deltas]


async def test_deltas_reach_their_request_and_the_end_closes_it() -> None:
    """In order; nothing is left to cancel after the end."""
    made, (a, b) = streams("a", "b")
    made.deliver(batch(0, delta("a", 0, 2), delta("b", 0)), 1.0)
    made.deliver(batch(1, delta("a", 2, end=True)), 1.0)
    assert [d.offset for d in await taken(a)] == [0, 2]
    assert [d.offset for d in await taken(b)] == [0]
    assert not made.close(a)
    assert made.close(b)
    assert (len(made), made.gaps) == (0, 0)


async def test_the_first_word_settles_an_attempt_and_an_empty_one_is_all_it_says() -> None:
    """Tokens, an error and the worker's loss settle it likewise; a refusal that comes later counts no more."""
    made, attempts = streams("empty", "tokens", "lost", "failed")
    assert not any(attempt.settled.is_set() for attempt in attempts)
    error = ErrorReply(ErrorCode.INTERNAL, "it failed")
    made.deliver(batch(0, TokenDelta("empty"), delta("tokens", 0), TokenDelta("failed", error=error)), 1.0)
    assert [attempt.settled.is_set() for attempt in attempts] == [True, True, False, True]
    assert [d.error for d in await taken(attempts[3])] == [error]
    made.deliver(batch(1, delta("empty", 0)), 1.0)
    assert [d.token_ids for d in await taken(attempts[0])] == [[7]]
    made.lose_worker(WORKER)
    attempts[2].settle(OverloadedError("too late"))
    assert attempts[2].settled.is_set()
    assert attempts[2].refusal is None
    assert lost(await taken(attempts[2])) == [True]


async def test_a_refusal_settles_it_too() -> None:
    """The first one."""
    _, (attempt,) = streams("a")
    refusal = OverloadedError("too many")
    attempt.settle(refusal)
    attempt.settle(NoWorkerError("it drains"))
    attempt.settle()
    assert attempt.settled.is_set()
    assert attempt.refusal is refusal


async def test_a_wrong_offset_loses_only_that_request() -> None:
    """Once, however much follows."""
    made, (a, b) = streams("a", "b")
    made.deliver(batch(0, delta("a", 0), delta("b", 0)), 1.0)
    made.deliver(batch(1, delta("a", 2), delta("b", 1)), 1.0)
    made.deliver(batch(2, delta("a", 3), delta("b", 2)), 1.0)
    made.sweep(100.0)
    assert lost(await taken(a)) == [False, True]
    assert lost(await taken(b)) == [False, False, False, True]
    assert made.close(a)


async def test_a_gap_puts_the_others_under_suspicion_until_they_speak() -> None:
    """Those in the batch after the gap are proven whole by their offsets."""
    made, (a, b, c) = streams("a", "b", "c")
    made.deliver(batch(0, delta("a", 0), delta("b", 0), delta("c", 0)), 1.0)
    made.deliver(batch(2, delta("a", 1)), 1.0)
    made.deliver(batch(3, delta("b", 1)), 2.0)
    made.sweep(3.5)
    assert made.gaps == 1
    assert lost(await taken(a)) == [False, False]
    assert lost(await taken(b)) == [False, False]
    assert lost(await taken(c)) == [False, True]


async def test_an_empty_batch_repeats_the_last_number() -> None:
    """The same number is no gap; a higher one means that the last batch was lost."""
    made, (a,) = streams("a")
    made.deliver(batch(0, delta("a", 0)), 1.0)
    made.deliver(batch(0), 1.0)
    assert made.gaps == 0
    made.deliver(batch(1), 1.0)
    assert made.gaps == 1
    made.sweep(3.5)
    assert lost(await taken(a)) == [False, True]


async def test_a_restarted_worker_counts_from_zero() -> None:
    """No gap by that; missing its first batch is one."""
    made, _ = streams("a")
    made.deliver(batch(0, delta("a", 0)), 1.0)
    made.deliver(batch(0, delta("x", 0), incarnation="2"), 1.0)
    assert made.gaps == 0
    made.deliver(batch(1, delta("x", 0), incarnation="3"), 1.0)
    assert made.gaps == 1


async def test_silence_is_measured_before_and_between_tokens() -> None:
    """10 s for the first token, 5 s between two."""
    made, (a, b) = streams("a", "b")
    made.deliver(batch(0, delta("a", 0)), 4.0)
    made.sweep(8.9)
    made.sweep(9.1)
    assert lost(await taken(a)) == [False, True]
    made.sweep(9.9)
    made.sweep(10.1)
    assert lost(await taken(b)) == [True]


async def test_a_busy_worker_is_not_silent() -> None:
    """A request that waits its turn is not given up while the worker gets on with others; when all stands still it is."""
    made, (a, b) = streams("a", "b")
    made.deliver(batch(0, delta("a", 0)), 1.0)
    WORKER.progress_s = 20.0
    try:
        made.sweep(24.9)
        assert not a.lost
        made.sweep(25.1)
        assert lost(await taken(a)) == [False, True]
        made.sweep(29.9)
        assert not b.lost
        made.sweep(30.1)
        assert lost(await taken(b)) == [True]
        assert not b.died
    finally:
        WORKER.progress_s = 0.0


async def test_a_lost_process_loses_its_requests() -> None:
    """And only those of this incarnation."""
    made, (a,) = streams("a")
    newer = Attempt("b", 1, Worker("w", "2", WORKER.offer, accepting=True, heard_s=0.0), Inbox(), 0.0)
    made.open(newer)
    made.lose_worker(WORKER)
    assert lost(await taken(a)) == [True]
    made.lose_worker(newer.worker)
    assert lost(await taken(newer)) == [True]
    assert (a.died, newer.died) == (True, True)


def test_tokens_for_nobody_are_noted() -> None:
    """Unless they are the end anyway."""
    made, _ = streams()
    made.deliver(batch(0, delta("x", 0), delta("y", 0, end=True)), 1.0)
    assert made.orphans == {"w": ["x"]}


@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.sets(st.integers(0, 11)))
async def test_no_loss_goes_unnoticed(sizes: list[int], dropped: set[int]) -> None:
    """Whichever batches are lost: the request gets all its tokens, or a prefix of them and an error."""
    made, (a,) = streams("a")
    offset = 0
    for seq, size in enumerate(sizes):
        if seq not in dropped:
            made.deliver(batch(seq, delta("a", offset, size, end=seq == len(sizes) - 1)), 1.0)
        offset += size
    made.deliver(batch(len(sizes) - 1), 1.0)
    made.sweep(3.5)
    got = await taken(a)
    whole = not dropped & set(range(len(sizes)))
    assert lost(got) == [False] * (len(got) - 1) + [not whole]
    assert sum(len(d.token_ids) for d in got) == sum(sizes[: min(dropped | {len(sizes)})])
