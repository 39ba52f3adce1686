"""The bodies of the REST API. Field names and shapes are LMCache's (`lmcache/v1/api_server`); what is ours is marked so."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Tokens = Annotated[list[TokenId], Meta(max_length=1_000_000, description="token ids, from the first on")]
EventId = Annotated[str, Meta(max_length=256, description="names the call for /check_finish; made up when left out")]
Position = Annotated[list[str], Meta(min_length=2, max_length=2, description="[instance_id, location]")]


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Root of all request bodies; keys that are not known are ignored, as LMCache does."""

    event_id: EventId | None = None


class QueryWorkerInfo(Body, frozen=True):
    """Which workers: of an instance, or of "all"; absent, null or [] means all of its workers."""

    instance_id: str
    worker_ids: list[int] | None = None


class QueryInstance(Body, frozen=True):
    """Which instance has a worker at this address."""

    ip: str


class TokensBody(Body, frozen=True):
    """A prompt."""

    tokens: Tokens


class Clear(Body, frozen=True):
    """Drop all that an instance holds at a location, such as LocalCPUBackend."""

    instance_id: str
    location: str


class Pin(Body, frozen=True):
    """Keep these tokens from being evicted."""

    instance_id: str
    location: str
    tokens: Tokens


class Compress(Body, frozen=True):
    """Compress or decompress; no tokens means everything."""

    instance_id: str
    method: str
    location: str
    tokens: Tokens | None = None


class Move(Body, frozen=True):
    """Move tokens between instances; the destination's workers need peer-to-peer transfers."""

    old_position: Position
    new_position: Position
    tokens: Tokens | None = None
    should_copy: bool | None = False


class Health(Body, frozen=True):
    """Ask every worker of an instance."""

    instance_id: str


class CheckFinish(msgspec.Struct, frozen=True):
    """Ask after a call."""

    event_id: str


class WorkerInfo(msgspec.Struct, frozen=True):
    """One worker; times are seconds since 1970."""

    instance_id: str
    worker_id: int
    ip: str
    port: int
    peer_init_url: str | None
    registration_time: float
    last_heartbeat_time: float


class WorkerInfos(msgspec.Struct, frozen=True):
    """Workers; none for an unknown instance."""

    event_id: str
    worker_infos: list[WorkerInfo]


class InstanceFound(msgspec.Struct, frozen=True):
    """The instance."""

    event_id: str
    res: str


class Layout(msgspec.Struct, frozen=True, omit_defaults=True):
    """The instance with the longest match: {instance_id: [location, matched_tokens]}; empty when none holds anything."""

    event_id: str
    layout_info: dict[str, tuple[str, int]]
    warnings: list[str] = []


class InstanceMatch(msgspec.Struct, frozen=True):
    """What one instance holds of the prompt."""

    instance_id: str
    location: str
    matched_tokens: int


class FullLayout(msgspec.Struct, frozen=True):
    """Every instance that holds something, longest first. Ours."""

    event_id: str
    matches: list[InstanceMatch]
    warnings: list[str]


class NumTokens(msgspec.Struct, frozen=True):
    """How many tokens it was done to; the least of all workers."""

    event_id: str
    num_tokens: int


class HealthCodes(msgspec.Struct, frozen=True):
    """0 is healthy."""

    event_id: str
    error_codes: dict[int, int]


class EventStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a call is doing."""

    event_id: str
    status: Literal["running", "finished", "failed"]
    error: str | None = None


class WorkerView(msgspec.Struct, frozen=True):
    """One worker, for operators. Ours beside the seven fields.

    Attributes:
        kind: ``worker`` (inside its engine) or ``server`` (an engine at a multi-process server).
        trust: how exactly its chunks are known.
        locations: chunks at each location.
        lost_reports: how many of its reports never came.
        hashing: how it hashes, once that is proven.
        details: of an engine at a server: model, world size, chunk size.
    """

    instance_id: str
    worker_id: int
    ip: str
    port: int
    peer_init_url: str | None
    registration_time: float
    last_heartbeat_time: float
    kind: str
    trust: str
    locations: dict[str, int]
    lost_reports: int
    hashing: str | None
    details: dict[str, Any]


class Workers(msgspec.Struct, frozen=True):
    """All workers."""

    workers: list[WorkerView]
    warnings: list[str]


class KeyStats(msgspec.Struct, frozen=True):
    """How many chunks are known, in all and by instance and location."""

    total_key_count: int
    total_worker_count: int
    total_instance_count: int
    instances: dict[str, dict[str, int]]
