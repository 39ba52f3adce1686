"""A rank's states, without a process."""

import asyncio
from typing import Any

import pytest

from components.worker_controller.messages import Assign, Hello, Phase, RankFree, RankReady, Release
from components.worker_controller.rank_slot import RankSlot, RankState


class Sent(list[Any]):
    """A link that remembers what was sent."""

    send = list.append


def warm(slot: RankSlot) -> Sent:
    """Let a process join `slot` and be warm."""
    sent = Sent()
    slot.joined(Hello("k", "rank", 1), sent)  # type: ignore[arg-type]
    slot.heard(RankReady(100))
    return sent


async def test_a_rank_is_lent_and_taken_back() -> None:
    """It is told of both, and what it keeps is measured against what it held when it was warm."""
    slot, phases = RankSlot(0), []
    sent = warm(slot)
    assert slot.free
    slot.assign("e", "key", pytest.fail, lambda rank, phase: phases.append((rank, phase.name)))
    slot.heard(Phase("e", "weights", 0, 1))
    releasing = asyncio.ensure_future(slot.release("e", 5))
    await asyncio.sleep(0)
    assert slot.view().status is RankState.RESETTING
    slot.heard(RankFree("other", 0, 0))
    slot.heard(RankFree("e", 150, 0))
    assert await releasing == 50
    assert sent == [Assign("e", "key"), Release("e")]
    assert phases == [(0, "weights")]
    slot.become_free()
    assert (slot.free, slot.view().engines_served) == (True, 1)


async def test_a_rank_that_says_nothing() -> None:
    """Waiting for it has an end."""
    slot = RankSlot(0)
    warm(slot)
    slot.assign("e", "key", pytest.fail, lambda *_: None)
    with pytest.raises(TimeoutError):
        await slot.release("e", 0.01)


async def test_a_death_is_told_once() -> None:
    """To the engine that has the rank; one that is being released needs to know nothing any more."""
    slot, reasons = RankSlot(3), []
    warm(slot)
    slot.assign("e", "key", reasons.append, lambda *_: None)
    slot.died("was killed")
    slot.died("again")
    assert reasons == ["worker rank 3 was killed"]
    assert await slot.release("e", 1) is None
    warm(slot)
    slot.assign("f", "key", pytest.fail, lambda *_: None)
    releasing = asyncio.ensure_future(slot.release("f", 5))
    await asyncio.sleep(0)
    slot.died("was killed")
    assert await releasing is None
    assert slot.view().replaced == 3


async def test_a_process_that_ends_with_its_engine_is_no_failure() -> None:
    """As on GPUs: the engine is not told that it lost a rank, and its end is why it ended."""
    slot = RankSlot(3)
    warm(slot)
    slot.assign("e", "key", pytest.fail, lambda *_: None)
    slot.died("ended with exit code 0", finished=True)
    assert slot.finished
    assert await slot.release("e", 1) is None
