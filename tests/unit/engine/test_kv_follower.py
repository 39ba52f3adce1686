"""Batches of KV events are followed in order; missing ones are asked for, lost ones admitted, a new life noticed."""

import msgspec
import pytest

from components.engine.kv_translate import EngineEvent, EngineStored, KvTranslator
from components.wire.block_hash import block_hashes, root_hash
from components.wire.kv import KvCleared, KvStored

pytest.importorskip("zmq")

from components.engine.vllm_kv import Batch, KvFollower

PROMPT = list(range(200))
OURS = block_hashes(PROMPT, 4, root_hash("m"))


def decode(payload: bytes | memoryview) -> list[EngineEvent]:
    """Return the event that batch n stands for: the prompt's block n."""
    n = msgspec.msgpack.decode(payload, type=int)
    return [EngineStored([n], n - 1 if n else None, PROMPT[n * 4 : n * 4 + 4], 4)]


def batch(seq: int, block: int | None = None) -> Batch:
    """Return batch `seq`, which stores the block of that number unless told otherwise."""
    return Batch(seq, msgspec.msgpack.encode(seq if block is None else block))


class Engine:
    """What an engine remembers, and what is known of it.

    Attributes:
        remembered: batches it can replay; it forgets or is silent by changing this.
        asked: the numbers it was asked to replay from.
    """

    def __init__(self) -> None:
        self.remembered: list[Batch] = []
        self.asked: list[int] = []
        self.translator = KvTranslator("m", 4)
        self.follower = KvFollower(self.translator, decode, self.replay)

    async def replay(self, first: int) -> list[Batch]:
        """Return what it remembers from `first` on."""
        self.asked.append(first)
        return [each for each in self.remembered if each.seq >= first]


async def test_in_order() -> None:
    """Nothing is asked for."""
    engine = Engine()
    for seq in range(4):
        await engine.follower.take(batch(seq))
    update = engine.translator.take()
    assert update is not None
    assert (update.changes, update.complete) == ([KvStored(OURS[:4])], True)
    assert engine.asked == []


async def test_a_gap_is_filled() -> None:
    """What is replayed and then comes live as well counts once."""
    engine = Engine()
    engine.remembered = [batch(seq) for seq in range(8)]
    for seq in (0, 1, 5, 6, 7):
        await engine.follower.take(batch(seq))
    await engine.follower.take(batch(8))
    update = engine.translator.take()
    assert update is not None
    assert (update.changes, update.events, update.complete) == ([KvStored(OURS[:9])], 9, True)
    assert engine.asked == [2]


async def test_first_batches_missed() -> None:
    """Whoever hears its first batch late asks for those before it."""
    engine = Engine()
    engine.remembered = [batch(seq) for seq in range(3)]
    await engine.follower.take(batch(2))
    update = engine.translator.take()
    assert update is not None
    assert update.changes == [KvStored(OURS[:3])]


async def test_the_last_batch_missed() -> None:
    """Silence is used to ask."""
    engine = Engine()
    await engine.follower.take(batch(0))
    engine.remembered = [batch(seq) for seq in range(3)]
    await engine.follower.catch_up()
    await engine.follower.catch_up()
    update = engine.translator.take()
    assert update is not None
    assert update.changes == [KvStored(OURS[:3])]
    assert engine.asked == [1, 3]


@pytest.mark.parametrize("remembered", [[], [batch(3)], [batch(3), batch(4, 0)]])
async def test_what_is_forgotten_is_lost(remembered: list[Batch]) -> None:
    """Everything is withdrawn, and what follows is marked incomplete."""
    engine = Engine()
    await engine.follower.take(batch(0))
    engine.remembered = remembered
    await engine.follower.take(batch(4, 0))
    update = engine.translator.take()
    assert update is not None
    assert update.changes == [KvCleared(), KvStored(OURS[:1])]
    assert (update.complete, update.gaps) == (False, 1)


async def test_a_number_that_goes_back_is_a_new_life() -> None:
    """The old engine's blocks go; the new one's are known from its first batch on."""
    engine = Engine()
    for seq in range(6):
        await engine.follower.take(batch(seq))
    engine.translator.take()
    engine.remembered = [batch(seq) for seq in range(3)]
    await engine.follower.take(batch(2))
    await engine.follower.take(batch(3))
    update = engine.translator.take()
    assert update is not None
    assert update.changes == [KvCleared(), KvStored(OURS[:4])]
    assert update.complete


async def test_a_new_life_after_a_replay() -> None:
    """Old numbers that come right after a replay were replayed too; once all is quiet they are a new life's."""
    engine = Engine()
    engine.remembered = [batch(seq) for seq in range(4)]
    engine.follower.settle()
    await engine.follower.catch_up()
    await engine.follower.take(batch(2))
    await engine.follower.take(batch(3))
    update = engine.translator.take()
    assert update is not None
    assert update.changes == [KvStored(OURS[:4])]
    engine.remembered = []
    await engine.follower.catch_up()
    engine.follower.settle()
    await engine.follower.take(batch(0))
    update = engine.translator.take()
    assert update is not None
    assert update.changes == [KvCleared(), KvStored(OURS[:1])]


async def test_nonsense_is_a_loss() -> None:
    """Bytes that are no batch, and token ids that cannot be, cost the worker's blocks, not its life."""
    engine = Engine()
    for seq, payload in enumerate((b"\xc1", msgspec.msgpack.encode("block"))):
        await engine.follower.take(Batch(seq, payload))
    await engine.follower.take(batch(2, 0))
    update = engine.translator.take()
    assert update is not None
    assert (update.changes, update.gaps) == ([KvCleared(), KvStored(OURS[:1])], 2)
