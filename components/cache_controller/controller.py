"""What the REST API does: questions to what is known, commands to workers and servers. Knows no HTTP and no ZeroMQ."""

import asyncio
import logging
from collections.abc import Callable

from msgspec.structs import asdict

from components.cache_controller import contract
from components.cache_controller.commands import (
    ClearCommand,
    Command,
    CompressCommand,
    HealthCommand,
    MoveCommand,
    PinCommand,
)
from components.cache_controller.events import Events
from components.cache_controller.holdings import Trust
from components.cache_controller.limits import Limits
from components.cache_controller.lmcache_protocol import LMCacheProtocol
from components.cache_controller.lookup import Found, Lookup
from components.cache_controller.roster import Kind, Roster, Worker
from components.cache_controller.servers import Servers
from components.cache_controller.workers import WorkerReports
from components.wire.errors import InvalidRequestError, NotFoundError, PenstockError

log = logging.getLogger(__name__)

_ALL = "all"


class Controller:
    """Answers calls. Each raises a `PenstockError` that says what is wrong, and ends within the request timeout."""

    def __init__(
        self,
        roster: Roster,
        reports: WorkerReports,
        lookup: Lookup,
        protocol: LMCacheProtocol,
        servers: Servers,
        limits: Limits,
    ) -> None:
        self._roster = roster
        self._reports = reports
        self._lookup = lookup
        self._protocol = protocol
        self._servers = servers
        self._limits = limits
        self._events = Events()

    async def query_worker_info(self, body: contract.QueryWorkerInfo) -> contract.WorkerInfos:
        """List workers."""
        with self._events.call("QueryWorkerInfo", body.event_id) as event_id:
            everyone = body.instance_id == _ALL
            workers = self._roster.everyone() if everyone else self._roster.instance(body.instance_id)
            wanted = set(body.worker_ids or ())
            infos = [_info(worker) for worker in workers if not wanted or worker.key.worker_id in wanted]
            return contract.WorkerInfos(event_id, infos)

    async def query_instance(self, body: contract.QueryInstance) -> contract.InstanceFound:
        """Find the instance at an address."""
        with self._events.call("QueryInst", body.event_id) as event_id:
            instance_id = self._roster.instance_at(body.ip)
            if instance_id is None:
                raise NotFoundError("no instance has a worker at this ip", param="ip")
            return contract.InstanceFound(event_id, instance_id)

    async def lookup(self, body: contract.TokensBody) -> contract.Layout:
        """Find the instance that holds the longest beginning of a prompt."""
        with self._events.call("Lookup", body.event_id) as event_id:
            found = await self._find(body.tokens)
            best = {match.instance_id: (match.location, match.tokens) for match in found.matches[:1]}
            return contract.Layout(event_id, best, found.warnings)

    async def full_lookup(self, body: contract.TokensBody) -> contract.FullLayout:
        """Find every instance that holds a beginning of a prompt."""
        with self._events.call("FullLookup", body.event_id) as event_id:
            found = await self._find(body.tokens)
            matches = [contract.InstanceMatch(each.instance_id, each.location, each.tokens) for each in found.matches]
            return contract.FullLayout(event_id, matches, found.warnings)

    async def _find(self, tokens: list[int]) -> Found:
        found = self._lookup.find(tokens, self._reports.instances())
        if self._servers.coordinators:
            at_servers = await self._servers.lookup(tokens)
            found.matches.extend(at_servers.matches)
            found.warnings.extend(at_servers.warnings)
            found.sort()
        return found

    async def clear(self, body: contract.Clear) -> contract.NumTokens:
        """Empty a location of an instance."""
        with self._events.call("Clear", body.event_id) as event_id:
            if server := self._servers.find(body.instance_id):
                return contract.NumTokens(event_id, await self._servers.clear(server, body.location))
            told = await self._tell(body.instance_id, event_id, lambda _: ClearCommand(body.location))
            return contract.NumTokens(event_id, _least(told))

    async def pin(self, body: contract.Pin) -> contract.NumTokens:
        """Keep tokens at a location of an instance."""
        with self._events.call("Pin", body.event_id) as event_id:
            if server := self._servers.find(body.instance_id):
                return contract.NumTokens(event_id, await self._servers.pin(server, body.location, body.tokens))
            told = await self._tell(body.instance_id, event_id, lambda _: PinCommand(body.location, body.tokens))
            return contract.NumTokens(event_id, _least(told))

    async def compress(self, body: contract.Compress) -> contract.NumTokens:
        """Compress tokens."""
        return await self._compress("Compress", body, undo=False)

    async def decompress(self, body: contract.Compress) -> contract.NumTokens:
        """Undo a compression."""
        return await self._compress("Decompress", body, undo=True)

    async def _compress(self, kind: str, body: contract.Compress, *, undo: bool) -> contract.NumTokens:
        with self._events.call(kind, body.event_id) as event_id:
            command = CompressCommand(body.location, body.method, body.tokens or None, undo)
            return contract.NumTokens(event_id, _least(await self._tell(body.instance_id, event_id, lambda _: command)))

    async def move(self, body: contract.Move) -> contract.NumTokens:
        """Have each worker of an instance send tokens to the worker of its rank at another one."""
        with self._events.call("Move", body.event_id) as event_id:
            (source, location), (target, target_location) = body.old_position, body.new_position
            peers = {worker.key.worker_id: worker.peer_init_url for worker in self._workers(target, "new_position")}
            for worker in self._workers(source, "old_position"):
                if not peers.get(worker.key.worker_id):
                    text = f"worker {worker.key.worker_id} of {target} takes nothing from peers (enable_p2p)"
                    raise InvalidRequestError(text, param="new_position")

            def command(worker: Worker) -> MoveCommand:
                url = peers[worker.key.worker_id] or ""
                return MoveCommand(location, url, target_location, body.tokens or None, bool(body.should_copy))

            return contract.NumTokens(event_id, _least(await self._tell(source, event_id, command)))

    async def health(self, body: contract.Health) -> contract.HealthCodes:
        """Ask every worker of an instance how it is."""
        with self._events.call("Health", body.event_id) as event_id:
            if server := self._servers.find(body.instance_id):
                return contract.HealthCodes(event_id, await self._servers.health(server))
            told = await self._tell(body.instance_id, event_id, lambda _: HealthCommand())
            return contract.HealthCodes(event_id, told)

    async def check_finish(self, body: contract.CheckFinish) -> contract.EventStatus:
        """Tell how a call is doing."""
        status = self._events.status(body.event_id)
        if status is None:
            raise NotFoundError("no call of this event_id is known; old ones are forgotten", param="event_id")
        return status

    def workers(self, instance_id: str | None) -> contract.Workers:
        """Return all that is known of workers."""
        workers = self._roster.instance(instance_id) if instance_id else self._roster.everyone()
        return contract.Workers([self._view(worker) for worker in workers], self._servers.warnings())

    def _view(self, worker: Worker) -> contract.WorkerView:
        holdings, engine = self._reports.holdings(worker.key), self._servers.engine(worker.key)
        scheme = self._lookup.scheme(worker.key.instance_id)
        return contract.WorkerView(
            **asdict(_info(worker)),
            kind=worker.kind,
            trust=holdings.trust if holdings is not None else Trust.EXACT,
            locations=holdings.locations if holdings is not None else {},
            lost_reports=holdings.lost if holdings is not None else 0,
            hashing=str(scheme) if scheme else None,
            details=asdict(engine) if engine else {},
        )

    def key_stats(self) -> contract.KeyStats:
        """Return how many chunks are known."""
        instances: dict[str, dict[str, int]] = {}
        for instance_id, workers in self._reports.instances().items():
            counts = instances.setdefault(instance_id, {})
            for holdings in workers:
                for location, chunks in holdings.locations.items():
                    counts[location] = counts.get(location, 0) + chunks
        instances |= {name: {"l1": chunks} for name, chunks in self._servers.chunks().items()}
        total = sum(chunks for counts in instances.values() for chunks in counts.values())
        return contract.KeyStats(total, len(self._roster), len(self._roster.instances()), instances)

    def _workers(self, instance_id: str, param: str = "instance_id") -> list[Worker]:
        """Return the in-process workers of an instance.

        Raises:
            NotFoundError: it is unknown.
            InvalidRequestError: it is a multi-process server.
        """
        workers = self._roster.instance(instance_id)
        if self._servers.find(instance_id):
            raise InvalidRequestError("a multi-process server cannot do this", param=param)
        if not workers:
            raise NotFoundError("no instance of this name is here; GET /controller/workers lists them", param=param)
        return workers

    async def _tell(self, instance_id: str, event_id: str, command: Callable[[Worker], Command]) -> dict[int, int]:
        """Have every worker of an instance do something; return what each of them answered, by rank.

        Raises:
            PenstockError: the first worker that failed says why; the others have been told all the same.
        """
        workers = [worker for worker in self._workers(instance_id) if worker.kind is Kind.WORKER]
        answers = await asyncio.gather(*(self._tell_one(worker, event_id, command(worker)) for worker in workers))
        for answer in answers:
            if isinstance(answer, PenstockError):
                raise answer
        return {w.key.worker_id: a for w, a in zip(workers, answers, strict=True) if isinstance(a, int)}

    async def _tell_one(self, worker: Worker, event_id: str, command: Command) -> int | PenstockError:
        worker_event_id = f"Worker{worker.key.worker_id}{event_id}"
        try:
            return await self._protocol.tell(
                worker.ip, worker.port, worker_event_id, command, self._limits.request_timeout_s
            )
        except PenstockError as error:
            log.warning("a worker was told in vain", extra={"instance": worker.key.instance_id, "error": error.message})
            return error


def _info(worker: Worker) -> contract.WorkerInfo:
    return contract.WorkerInfo(
        instance_id=worker.key.instance_id,
        worker_id=worker.key.worker_id,
        ip=worker.ip,
        port=worker.port,
        peer_init_url=worker.peer_init_url,
        registration_time=worker.registered.unix_s,
        last_heartbeat_time=worker.seen.unix_s,
    )


def _least(told: dict[int, int]) -> int:
    """Return what holds for all ranks."""
    return min(told.values())
