"""The stream of KV events against vLLM's own publisher and classes, without an engine: late, lossy, restarted, strange."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    ZmqEventPublisher,
)

from components.engine.kv_translate import EngineCleared, EngineRemoved, EngineStored
from components.engine.protocol import KvUpdate
from components.engine.vllm_compat import kv_events
from components.engine.vllm_kv import MAX_BATCHES_A_TURN, QUIET_S, KvStream
from components.wire.block_hash import block_hashes, root_hash
from components.wire.kv import KvCleared, KvStored, Tier

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPT = list(range(32 * 60))
OURS = block_hashes(PROMPT, 32, root_hash("demo"))


def stored(index: int, **fields: Any) -> BlockStored:
    """Return vLLM's event of the prompt's block `index`."""
    tokens = PROMPT[index * 32 : index * 32 + 32]
    parent = index + 999 if index else None
    return BlockStored([index + 1000], parent, tokens, 32, None, "GPU", None, **fields)


def batch(*events: Any) -> KVEventBatch:
    """Return a batch of vLLM's."""
    return KVEventBatch(ts=time.time(), events=list(events))


class Listener:
    """A stream and what it said."""

    def __init__(self, stream: KvStream) -> None:
        self.stream = stream
        self.updates: list[KvUpdate] = []

    async def run(self) -> None:
        """Listen until the stream is closed."""
        async for update in self.stream.updates():
            self.updates.append(update)

    async def changes_end_with(self, expected: object) -> None:
        """Wait until the last change is as expected."""
        async with asyncio.timeout(5):
            while not (self.updates and self.updates[-1].changes and self.updates[-1].changes[-1] == expected):
                await asyncio.sleep(0.01)

    async def told(self, expected: list[int]) -> None:
        """Wait until exactly these blocks were told as stored, in this order."""
        async with asyncio.timeout(5):
            while self._stored() != expected:
                await asyncio.sleep(0.01)

    def _stored(self) -> list[int]:
        changes = [change for update in self.updates for change in update.changes]
        return [block for change in changes if isinstance(change, KvStored) for block in change.blocks]


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    """A stream that is open; whoever wants to hear runs it."""
    stream = KvStream("demo", 32, partial(kv_events, cpu_tier=Tier.HOST))
    stream.open()
    yield Listener(stream)
    stream.close()


def publisher(listener: Listener, **settings: Any) -> ZmqEventPublisher:
    """Return vLLM's publisher as the stream's configuration asks for it."""
    config = {name: listener.stream.config[name] for name in ("endpoint", "replay_endpoint")}
    return ZmqEventPublisher(0, **config, **settings)


async def test_events_come_in_order(listener: Listener) -> None:
    """From the first on, though nobody waits for the connection; the stream ends when it is closed."""
    source = publisher(listener)
    listening = asyncio.create_task(listener.run())
    for index in range(60):
        source.publish(batch(stored(index)))
        await asyncio.sleep(0.002)
    await listener.told(OURS)
    assert all(update.complete for update in listener.updates)
    listener.stream.close()
    await asyncio.wait_for(listening, 1)
    source.shutdown()


async def test_a_backlog_is_taken_in_turns(listener: Listener) -> None:
    """Whoever else is on the event loop, such as streams of tokens, comes between."""
    source, turns, seen = publisher(listener), 0, list[int]()

    async def stream_tokens() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def listen() -> None:
        async for update in listener.stream.updates():
            listener.updates.append(update)
            seen.append(turns)

    source.publish(batch(stored(0)))
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(listen())
        await listener.told(OURS[:1])
        streaming = tasks.create_task(stream_tokens())
        for index in range(1, 60):
            source.publish(batch(stored(index)))
        time.sleep(0.2)  # noqa: ASYNC251 # nobody listens meanwhile, so there is a backlog
        await listener.told(OURS)
        listening.cancel()
        streaming.cancel()
    assert max(update.events for update in listener.updates) <= MAX_BATCHES_A_TURN
    assert all(later > earlier for earlier, later in pairwise(seen))
    source.shutdown()


async def test_all_that_was_said_before_anybody_listened(listener: Listener) -> None:
    """No batch comes any more, so silence is used to ask for those that were."""
    source = publisher(listener)
    listener.stream._socket.unsubscribe(b"")  # type: ignore[union-attr] # events are lost on purpose
    for index in range(20):
        source.publish(batch(stored(index)))
    await asyncio.sleep(0.2)
    listening = asyncio.create_task(listener.run())
    await listener.changes_end_with(KvStored(OURS[:20]))
    assert [update.complete for update in listener.updates] == [True]
    listening.cancel()
    source.shutdown()


async def test_more_was_lost_than_vllm_remembers(listener: Listener) -> None:
    """Whatever can still be known is told, as incomplete; a cleared cache ends that."""
    source = publisher(listener, buffer_steps=3)
    listener.stream._socket.unsubscribe(b"")  # type: ignore[union-attr] # events are lost on purpose
    for index in (0, 1, 2, 3, 4, 0, 1, 2):
        source.publish(batch(stored(index)))
    await asyncio.sleep(0.2)
    listening = asyncio.create_task(listener.run())
    await listener.changes_end_with(KvStored(OURS[:3]))
    (update,) = listener.updates
    assert (update.changes[0], update.complete, update.gaps) == (KvCleared(), False, 1)
    listener.stream._socket.subscribe(b"")  # type: ignore[union-attr]
    await asyncio.sleep(0.1)
    source.publish(batch(AllBlocksCleared()))
    await listener.changes_end_with(KvCleared())
    assert listener.updates[-1].complete
    listening.cancel()
    source.shutdown()


async def test_the_engine_begins_anew(listener: Listener) -> None:
    """A second publisher at the same place, counting from 0: the first one's blocks are gone."""
    listening = asyncio.create_task(listener.run())
    first = publisher(listener)
    for index in range(5):
        first.publish(batch(stored(index)))
    await listener.told(OURS[:5])
    first.shutdown()
    await asyncio.sleep(2.5 * QUIET_S)
    second = publisher(listener)
    for index in range(4):
        second.publish(batch(stored(index)))
        await asyncio.sleep(0.1)
    await listener.told(OURS[:5] + OURS[:4])
    assert [KvCleared() in update.changes for update in listener.updates].count(True) == 1
    assert all(update.complete for update in listener.updates)
    listening.cancel()
    second.shutdown()


async def test_nothing_is_left_behind(listener: Listener) -> None:
    """Closing removes the sockets' folder, also when nobody ever listened."""
    folder = listener.stream._folder
    assert folder is not None
    assert folder.stat().st_mode & 0o077 == 0
    listener.stream.close()
    listener.stream.close()
    assert not folder.exists()
    assert [update async for update in listener.stream.updates()] == []


def test_vllms_events_become_ours() -> None:
    """Salt, adapter, medium and group are found where vLLM puts them; what token ids do not say ends a run."""
    two = {"block_hashes": [1, 2], "parent_block_hash": None, "token_ids": [7] * 64, "block_size": 32, "lora_id": None}
    plain = two | {"medium": "GPU", "lora_name": None}
    cases = [
        (plain, EngineStored([1, 2], None, [7] * 64, 32)),
        (plain | {"extra_keys": [("salt",), None]}, EngineStored([1, 2], None, [7] * 64, 32, None, "salt")),
        (plain | {"lora_name": "a", "extra_keys": [("a",), ("a",)]}, EngineStored([1, 2], None, [7] * 64, 32, "a")),
        (plain | {"lora_name": "a", "extra_keys": [("a", "s"), ("a",)]}, EngineStored([1, 2], None, [7] * 64, 32, "a", "s")),
        (plain | {"extra_keys": [None, (("image", 3),)]}, EngineStored([1], None, [7] * 32, 32)),
        (plain | {"extra_keys": [(("image", 3), "salt"), None]}, None),
        (plain | {"extra_keys": [(b"digest",), None]}, None),
        (plain | {"medium": "CPU"}, EngineStored([1, 2], None, [7] * 64, 32, tier=Tier.SHARED)),
        (plain | {"medium": "STORAGE"}, EngineStored([1, 2], None, [7] * 64, 32, tier=Tier.DISK)),
        (plain | {"medium": None, "group_idx": 2}, EngineStored([1, 2], None, [7] * 64, 32, group=2)),
        (plain | {"group_idx": 1, "kv_cache_spec_kind": "sliding_window"}, None),
        (plain | {"group_idx": 0, "kv_cache_spec_kind": "full_attention"}, EngineStored([1, 2], None, [7] * 64, 32)),
    ]
    events = [BlockStored(**fields) for fields, _ in cases]
    payload = msgspec.msgpack.encode(batch(*events, BlockRemoved([5], "GPU", group_idx=3), AllBlocksCleared()))
    expected = [event for _, event in cases if event is not None]
    assert kv_events(payload, Tier.SHARED) == [*expected, EngineRemoved([5], group=3), EngineCleared()]


def test_bytes_that_are_no_events() -> None:
    """They are refused."""
    for payload in (b"", b"\xc1", msgspec.msgpack.encode({"ts": 1.0, "events": [{"type": "Unheard"}]})):
        with pytest.raises(msgspec.DecodeError):
            kv_events(payload, Tier.HOST)
