"""What in-process workers report, freed of LMCache's messages."""

from dataclasses import dataclass
from typing import Protocol

from components.cache_controller.holdings import Change
from components.cache_controller.roster import WorkerKey


@dataclass(frozen=True)
class WorkerAddress:
    """A worker as it presents itself.

    Attributes:
        key: its name.
        ip: where it listens for commands.
        port: likewise.
        peer_init_url: where other workers fetch KV from it; None without peer-to-peer transfers.
    """

    key: WorkerKey
    ip: str
    port: int
    peer_init_url: str | None = None


@dataclass(frozen=True)
class SyncBegin:
    """A worker is going to tell all it holds.

    Attributes:
        sync_id: its name for it.
        location: of what.
        chunks: how many.
        batches: in how many parts.
    """

    sync_id: str
    location: str
    chunks: int
    batches: int


@dataclass(frozen=True)
class SyncState:
    """How far a full sync is.

    Attributes:
        complete: all parts came.
        over: the worker has nothing more to wait for: it is complete, or nobody knows it (any more).
        missing: parts that did not come.
    """

    complete: bool
    over: bool
    missing: list[int]


@dataclass(frozen=True)
class PeerMatch:
    """Another instance that holds chunks and can send them.

    Attributes:
        instance_id: which.
        location: where the first of them lies.
        chunks: how many of those asked for, from the first on.
        peer_url: where they are fetched.
    """

    instance_id: str
    location: str
    chunks: int
    peer_url: str


class Reports(Protocol):
    """Takes what workers report."""

    def registered(self, worker: WorkerAddress) -> str | None:
        """Return why it is refused, if it is."""

    def beat(self, worker: WorkerAddress) -> str | None:
        """Return why a full sync is wanted, if one is."""

    def deregistered(self, worker: WorkerAddress) -> None:
        """The worker leaves."""

    def changed(self, key: WorkerKey, location: str, changes: list[Change]) -> None:
        """Chunks came or went."""

    def sync_begins(self, key: WorkerKey, sync: SyncBegin) -> bool:
        """Return whether it may."""

    def sync_batch(self, key: WorkerKey, sync_id: str, batch: int, chunks: list[int]) -> None:
        """A part of a full sync."""

    def sync_ends(self, key: WorkerKey, sync_id: str) -> None:
        """All parts were sent."""

    def sync_state(self, key: WorkerKey, sync_id: str) -> SyncState:
        """Return how far it is."""

    def peer_match(self, instance_id: str, chunks: list[int]) -> PeerMatch | None:
        """Return who else holds the beginning of `chunks` and can send it."""

    def malformed(self) -> None:
        """Something came that is no message, or not of a worker."""
