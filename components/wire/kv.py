"""What workers tell of the KV blocks they hold, and what a router asks them; block hashes are ours (`block_hash`).

A worker numbers its batches 0, 1, 2 … for each incarnation. A receiver that misses one asks for a snapshot, which says as of
which number it holds.
"""

from enum import StrEnum

from components.wire.messages import Message


class Tier(StrEnum):
    """Where a block lies."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    SHARED = "shared"


class KvStored(Message, frozen=True, tag="stored", tag_field="kind"):
    """Blocks that can be reused from now on.

    Attributes:
        blocks: hashes of consecutive blocks of one prompt, first to last.
        parent: hash of the block before the first; None when the first block begins a prompt.
        tier: where they lie.
    """

    blocks: list[int]
    parent: int | None = None
    tier: Tier = Tier.DEVICE


class KvRemoved(Message, frozen=True, tag="removed", tag_field="kind"):
    """Blocks that are gone from a tier.

    Attributes:
        blocks: in any order.
        tier: where they lay.
        parents: the block before each, so that nobody else must remember; None where a prompt begins or it is not known.
    """

    blocks: list[int]
    tier: Tier = Tier.DEVICE
    parents: list[int | None] = []


class KvCleared(Message, frozen=True, tag="cleared", tag_field="kind"):
    """Nothing is held any more, in any tier of this worker's own."""


KvChange = KvStored | KvRemoved | KvCleared


class KvBatch(Message, frozen=True):
    """Changes at one worker, in order.

    Attributes:
        worker: the sender.
        incarnation: changes whenever the worker's process does.
        seq: 0, 1, 2 … within an incarnation; an empty batch repeats the last number, so that a lost last one is noticed.
        changes: in the order they happened.
    """

    worker: str
    incarnation: str
    seq: int
    changes: list[KvChange] = []


class ChunksChanged(Message, frozen=True):
    """What an LMCache server holds from now on, and what no longer; only its engines know what that is.

    Attributes:
        store: name of the server's process.
        held: the low 64 bits of LMCache's own hashes of chunks that any engine can load.
        gone: likewise of chunks that none can any more.
    """

    store: str
    held: list[int] = []
    gone: list[int] = []


class SnapshotRequest(Message, frozen=True):
    """Ask a worker for all it holds; the chunks come to `reply_to`.

    Attributes:
        snapshot_id: repeated in every chunk.
        reply_to: the subject for `SnapshotChunk`.
    """

    snapshot_id: str
    reply_to: str


class SnapshotChunk(Message, frozen=True):
    """A part of what a worker holds.

    Attributes:
        snapshot_id: which request it answers.
        worker: the sender.
        incarnation: its life.
        seq: the batch up to which this is true; later batches come on top.
        index: 0, 1, 2 …
        last: no more chunks follow.
        complete: false when the worker itself may have missed some of its engine's events: overlap is a lower bound.
        stored: runs of blocks.
    """

    snapshot_id: str
    worker: str
    incarnation: str
    seq: int
    index: int
    last: bool = False
    complete: bool = True
    stored: list[KvStored] = []
