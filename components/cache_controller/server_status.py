"""What LMCache's coordinator and its servers say of themselves over HTTP, and what is kept of a server. No I/O."""

from dataclasses import dataclass, field

import msgspec

from components.cache_controller.roster import Instant


class Instance(msgspec.Struct, frozen=True):
    """A server in a coordinator's list."""

    instance_id: str
    ip: str
    http_port: int
    registration_time: float
    p2p_advertised_url: str = ""


class Instances(msgspec.Struct, frozen=True):
    """The answer to ``GET /instances`` of a coordinator."""

    instances: list[Instance]


class Engine(msgspec.Struct, frozen=True):
    """One engine's process (a rank) at a server."""

    model_name: str
    world_size: int


class L1Status(msgspec.Struct, frozen=True):
    """A server's first level."""

    total_object_count: int = 0


class StorageStatus(msgspec.Struct, frozen=True):
    """A server's levels."""

    l1_manager: L1Status = L1Status()


class Status(msgspec.Struct, frozen=True):
    """What a server says of itself."""

    chunk_size: int
    hash_algorithm: str = ""
    storage_manager: StorageStatus = StorageStatus()
    cache_context_meta: dict[str, Engine] = {}
    non_cuda_context_meta: dict[str, Engine] = {}

    @property
    def engines(self) -> dict[str, Engine]:
        """The engines' processes, by ids of their own."""
        return self.cache_context_meta | self.non_cuda_context_meta


@dataclass
class Server:
    """A server.

    Attributes:
        coordinator: the URL of the one that knows it.
        instance: how it is registered there.
        status: what it last said.
        seen: when it said so.
        numbers: worker ids, by the engines' own ids.
        since: when each engine was first seen, likewise.
        told: how many of its objects the coordinator knows.
        behind: how often in a row those were too few; it is told a moment after the fact, and nothing of before it began.
    """

    coordinator: str
    instance: Instance
    status: Status
    seen: Instant
    numbers: dict[str, int] = field(default_factory=dict)
    since: dict[str, Instant] = field(default_factory=dict)
    told: int = 0
    behind: int = 0

    @property
    def objects(self) -> int:
        """How many objects its first level holds."""
        return self.status.storage_manager.l1_manager.total_object_count

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://{bracketed(self.instance.ip)}:{self.instance.http_port}"


class InstanceStats(msgspec.Struct, frozen=True):
    """What LMCache 0.5.3 says of an instance."""

    num_l1_keys: int = 0


class Stats(msgspec.Struct, frozen=True):
    """The answer to ``GET /directory/stats`` of a coordinator: the objects it was told of, in two ways to say it."""

    l1_keys_by_instance: dict[str, int] = {}
    instances: dict[str, InstanceStats] = {}

    def told(self, instance_id: str) -> int:
        """Return how many objects of a server's first level the coordinator knows."""
        return self.l1_keys_by_instance.get(instance_id, self.instances.get(instance_id, InstanceStats()).num_l1_keys)


class MpConfig(msgspec.Struct, frozen=True):
    """Where a server listens to engines."""

    port: int


class Config(msgspec.Struct, frozen=True):
    """The answer to ``GET /config`` of a server."""

    mp: MpConfig


class Pinned(msgspec.Struct, frozen=True):
    """The answer to ``POST /cache/pins`` of a coordinator: chunks asked for, objects pinned."""

    requested: int = 0
    affected: int = 0


def bracketed(host: str) -> str:
    """Return a host as URLs want it."""
    return f"[{host}]" if ":" in host else host
