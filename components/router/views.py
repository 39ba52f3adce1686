"""What people and programs see of a router's knowledge. Pure: reads, changes nothing."""

import re

import msgspec

from components.router.cost import Load
from components.router.feed import Counts
from components.router.kv_index import IndexStats
from components.router.service import RouterService
from components.wire.process import WorkerRole
from components.wire.routing import Trust


class WorkerView(msgspec.Struct, frozen=True):
    """One of GET /workers.

    Attributes:
        name: its name.
        role: decode; prefill workers take no requests, but tell what is in their store.
        store: the LMCache server it shares KV through; empty without one.
        incarnation: of its process.
        state: ready or draining.
        trust: in what is known of its KV: exact, degraded or fallback.
        why: why the trust is not exact.
        seq: the last batch of its events in the index; null when out of step.
        blocks: of its device, in the index.
        host_blocks: of its slower tiers, in the index.
        shared_blocks: of its store, in the index.
        load: by the router's books.
        running_requests: by its own word.
        waiting_requests: by its own word.
        kv_usage: by its own word, 0 to 1.
        kv_blocks: KV blocks it has in all.
        hit_rate: share of its prompt tokens that were reused, since it started; null before the first.
        prefill_s_per_token: measured.
        fetch_s_per_token: measured.
    """

    name: str
    role: WorkerRole
    store: str
    incarnation: str
    state: str
    trust: Trust
    why: str
    seq: int | None
    blocks: int
    host_blocks: int
    shared_blocks: int
    load: Load
    running_requests: int
    waiting_requests: int
    kv_usage: float
    kv_blocks: int
    hit_rate: float | None
    prefill_s_per_token: float
    fetch_s_per_token: float


class IndexView(msgspec.Struct, frozen=True):
    """GET /index/stats: the index by tier, and what came over NATS."""

    device: IndexStats
    host: IndexStats
    shared: IndexStats
    events: Counts
    requests: int


def worker_view(service: RouterService, name: str) -> WorkerView:
    """Return what is known of a worker on the roster, a prefill worker too.

    Raises:
        KeyError: there is none of this name.
    """
    present, chooser, feed = service.roster.everybody[name], service.chooser, service.feed
    told, speed = present.offer.load, chooser.fleet.speed(name)
    return WorkerView(
        name=name,
        role=present.offer.role,
        store=present.offer.store,
        incarnation=present.incarnation,
        state=present.state.value,
        trust=feed.trust(name),
        why=feed.why(name),
        seq=feed.seq(name),
        blocks=chooser.device.workers().get(name, 0),
        host_blocks=chooser.host.workers().get(name, 0),
        shared_blocks=chooser.shared.workers().get(present.offer.store, 0),
        load=chooser.fleet.load(name) if name in service.roster.workers else Load(),
        running_requests=told.running_requests,
        waiting_requests=told.waiting_requests,
        kv_usage=told.kv_usage,
        kv_blocks=present.offer.kv_blocks,
        hit_rate=told.cached_tokens / told.prompt_tokens if told.prompt_tokens else None,
        prefill_s_per_token=speed.prefill_s_per_token,
        fetch_s_per_token=speed.fetch_s_per_token,
    )


def index_view(service: RouterService) -> IndexView:
    """Return how big the index is, and what it was made of."""
    chooser = service.chooser
    return IndexView(
        chooser.device.stats(), chooser.host.stats(), chooser.shared.stats(), service.feed.counts, chooser.fleet.requests()
    )


def by_number(name: str) -> list[tuple[int, str]]:
    """Return what to sort names by so that ``decode-2`` comes before ``decode-10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]
