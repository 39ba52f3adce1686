"""Multi-process LMCache servers, as `lmcache coordinator`s know them: who they are, what they hold, what they can do.

A server is an instance, each engine at it one of its workers. Knows the HTTP APIs of LMCache's coordinator (`/instances`,
`/directory/lookup`, `/cache/pins`) and server (`/status`, `/cache/clear`, `/healthcheck`). The coordinator hashes tokens.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

import aiohttp
import msgspec

from components.cache_controller.calls import Calls
from components.cache_controller.limits import Limits
from components.cache_controller.lookup import Found, Match
from components.cache_controller.placements import DirectoryAnswer, prefixes
from components.cache_controller.roster import Kind, Roster, Worker, WorkerKey
from components.cache_controller.server_pins import ServerPins
from components.cache_controller.server_status import (
    Config,
    Engine,
    Instance,
    Instances,
    Pinned,
    Server,
    Stats,
    Status,
    bracketed,
)
from components.cache_controller.workers import Clock
from components.wire.errors import InvalidRequestError, PenstockError

log = logging.getLogger(__name__)

_POLL_S = 0.5
_FIND_S = 2.0
_STATUS_TIMEOUT_S = 2.0
_L1 = frozenset({"l1", "LocalCPUBackend"})  # LMCache's name for the same in a worker is taken, too
_L2 = "l2"
_BEHIND_POLLS = 4
_TOLD_POLL_S = 0.05
_TOLD_TRIES = 20


class Servers:
    """Keeps the servers of some coordinators on the roster, and asks them.

    Args:
        find: returns the coordinators' URLs as they are now; asked again and again.
        roster: where their engines are listed.
        limits: how long to wait.
        clock: tells the time.
        http: a client; its owner closes it.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[Iterable[str]]],
        roster: Roster,
        limits: Limits,
        clock: Clock,
        http: aiohttp.ClientSession,
    ) -> None:
        self._find = find
        self._coordinators: dict[str, bool] = {}
        self._roster = roster
        self._limits = limits
        self._clock = clock
        self._ask = Calls(http, limits.request_timeout_s).ask
        self._pins = ServerPins()
        self._servers: dict[str, Server] = {}

    @property
    def coordinators(self) -> dict[str, bool]:
        """The coordinators, and whether each answers."""
        return dict(self._coordinators)

    def find(self, instance_id: str) -> Server | None:
        """Return a server."""
        return self._servers.get(instance_id)

    def engine(self, key: WorkerKey) -> Engine | None:
        """Return the engine that is listed under `key`."""
        server = self._servers.get(key.instance_id)
        ids = server.numbers if server else {}
        return next(
            (server.status.engines.get(id_) for id_, number in ids.items() if server and number == key.worker_id), None
        )

    def chunks(self) -> dict[str, int]:
        """Return how many objects each server's first level holds."""
        return {name: server.objects for name, server in self._servers.items()}

    async def close(self) -> None:
        """Give back what is pinned."""
        await self._pins.close()

    async def watch(self) -> None:
        """Go on for ever: with coordinators that come, and without those that go."""
        watching: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                wanted = {url.rstrip("/") for url in await self._find()}
                for url in watching.keys() - wanted:
                    watching.pop(url).cancel()
                    self._drop(url)
                for url in wanted - watching.keys():
                    self._coordinators[url] = False
                    watching[url] = tasks.create_task(self._watch(url))
                await asyncio.sleep(_FIND_S)

    def _drop(self, coordinator: str) -> None:
        """Forget a coordinator, and the servers it told of."""
        del self._coordinators[coordinator]
        for server in [each for each in self._servers.values() if each.coordinator == coordinator]:
            self._forget(server)

    async def _watch(self, coordinator: str) -> None:
        while True:
            await self.refresh(coordinator)
            await asyncio.sleep(_POLL_S)

    async def refresh(self, coordinator: str) -> None:
        """Ask a coordinator for its servers, and each of them for its engines."""
        listed: dict[str, Instance] = {}
        stats = Stats()
        try:
            found = await self._ask("GET", f"{coordinator}/instances", Instances, timeout_s=_STATUS_TIMEOUT_S)
            stats = await self._ask("GET", f"{coordinator}/directory/stats", Stats, timeout_s=_STATUS_TIMEOUT_S)
            listed = {each.instance_id: each for each in found.instances}
        except PenstockError as error:
            if self._coordinators[coordinator]:
                log.warning("a coordinator does not answer", extra={"url": coordinator, "error": error.message})
            self._coordinators[coordinator] = False
        else:
            self._coordinators[coordinator] = True
        # One that is not listed may still be there: its coordinator is, or was just, away.
        known = {name: each.instance for name, each in self._servers.items() if each.coordinator == coordinator}
        async with asyncio.TaskGroup() as tasks:
            for instance in (known | listed).values():
                tasks.create_task(self._look_at(coordinator, instance, is_listed=instance.instance_id in listed))
        for name, server in self._servers.items():
            if server.coordinator == coordinator:
                server.told = stats.told(name)
                server.behind = server.behind + 1 if server.told < server.objects else 0

    async def _look_at(self, coordinator: str, instance: Instance, *, is_listed: bool) -> None:
        server = self._servers.get(instance.instance_id)
        draft = Server(coordinator, instance, Status(0), self._clock())
        try:
            status = await self._ask("GET", f"{draft.url}/status", Status, timeout_s=_STATUS_TIMEOUT_S)
        except PenstockError:
            silent_s = self._clock().monotonic_s - server.seen.monotonic_s if server else 0.0
            if server and (not is_listed or silent_s > self._limits.worker_timeout_s):
                log.warning("a server is gone", extra={"instance": instance.instance_id})
                self._forget(server)
            return
        if server is None:
            server = self._servers[instance.instance_id] = draft
        server.coordinator, server.instance, server.status, server.seen = coordinator, instance, status, self._clock()
        self._list(server)

    def _forget(self, server: Server) -> None:
        for number in server.numbers.values():
            self._roster.remove(WorkerKey(server.instance.instance_id, number))
        del self._servers[server.instance.instance_id]

    def _list(self, server: Server) -> None:
        """Bring the roster up to date with a server's engines."""
        name, engines = server.instance.instance_id, server.status.engines
        for gone in set(server.numbers) - set(engines):
            self._roster.remove(WorkerKey(name, server.numbers.pop(gone)))
            server.since.pop(gone)
        for engine_id in engines:
            if engine_id not in server.numbers:
                taken = set(server.numbers.values())
                server.numbers[engine_id] = next(number for number in range(len(taken) + 1) if number not in taken)
                server.since[engine_id] = server.seen
            key = WorkerKey(name, server.numbers[engine_id])
            peer, at = server.instance.p2p_advertised_url or None, server.since[engine_id]
            self._roster.put(
                Worker(key, Kind.SERVER, server.instance.ip, server.instance.http_port, peer, at, server.seen, beats=True)
            )

    async def lookup(self, tokens: list[int]) -> Found:
        """Return which servers hold the beginning of `tokens`; one that cannot be asked is a warning, not an error."""
        found = Found()
        asked = {
            (server.coordinator, engine.model_name, engine.world_size)
            for server in self._servers.values()
            for engine in server.status.engines.values()
        }
        answers = await asyncio.gather(*(self._directory(*each, tokens, found) for each in sorted(asked)))
        best: dict[str, Match] = {}
        for match in (match for matches in answers for match in matches):
            if match.tokens > (best[match.instance_id].tokens if match.instance_id in best else 0):
                best[match.instance_id] = match
        found.matches = list(best.values())
        found.warnings.extend(self.warnings())
        return found

    def warnings(self) -> list[str]:
        """Return why lookups may find less than there is."""
        away = [f"the coordinator {url} does not answer" for url, up in self._coordinators.items() if not up]
        return away + [
            f"{name} holds {server.objects} objects, and its coordinator was told of {server.told} of them"
            for name, server in self._servers.items()
            if server.told < server.objects and server.behind >= _BEHIND_POLLS
        ]

    async def _directory(self, coordinator: str, model: str, ranks: int, tokens: list[int], found: Found) -> list[Match]:
        body = {"token_ids": tokens, "model_name": model, "world_size": ranks}
        if not tokens:
            return []
        try:
            answer = await self._ask("POST", f"{coordinator}/directory/lookup", DirectoryAnswer, body)
        except PenstockError as error:
            found.warnings.append(f"the coordinator {coordinator} cannot be asked: {error.message}")
            return []
        matches = []
        for name, server in self._servers.items():
            if server.coordinator == coordinator and answer.chunks != len(tokens) // server.status.chunk_size:
                size = server.status.chunk_size
                text = f"{name} has chunks of {size} tokens, its coordinator others (--chunk-size): nothing of it is found"
                found.warnings.append(text)
        for name, (location, chunks) in prefixes(answer, ranks).items():
            holder = self._servers.get(name)
            if holder is not None and chunks:
                matches.append(Match(name, location, chunks * holder.status.chunk_size))
        return matches

    async def clear(self, server: Server, location: str) -> int:
        """Empty a server's first level, of pinned tokens too. Return how many tokens that took.

        Raises:
            InvalidRequestError: it has no such location, or cannot clear it.
        """
        _require(location in _L1, "location", "a multi-process server clears l1")
        if self._pins.holds_any:
            await self._pins.release(await self._engine_url(server))
        server.status = await self._ask("GET", f"{server.url}/status", Status)
        before = server.objects
        await self._ask("POST", f"{server.url}/cache/clear", msgspec.Raw, {"tier": "l1"})
        server.status = await self._ask("GET", f"{server.url}/status", Status)
        await self._until_told(server)
        removed = max(0, before - server.objects)
        ranks = max((engine.world_size for engine in server.status.engines.values()), default=1)
        return removed // ranks * server.status.chunk_size

    async def _until_told(self, server: Server) -> None:
        """Wait a moment until the coordinator knows of no more than a server holds; it is told after the fact."""
        for _ in range(_TOLD_TRIES):
            stats = await self._ask("GET", f"{server.coordinator}/directory/stats", Stats)
            if stats.told(server.instance.instance_id) <= server.objects:
                return
            await asyncio.sleep(_TOLD_POLL_S)

    async def pin(self, server: Server, location: str, tokens: list[int]) -> int:
        """Keep tokens in a level; in the first one until `clear`, or this process's end. Return how many there are to keep.

        Raises:
            InvalidRequestError: it has no such location.
        """
        _require(location in _L1 or location == _L2, "location", "a multi-process server pins l1 or l2")
        most = 0
        for model, ranks in sorted({(engine.model_name, engine.world_size) for engine in server.status.engines.values()}):
            if location == _L2:
                body = {"model_name": model, "world_size": ranks, "token_ids": tokens}
                pinned = await self._ask("POST", f"{server.coordinator}/cache/pins", Pinned, body)
                most = max(most, pinned.affected // ranks * server.status.chunk_size)
            else:
                most = max(most, await self._pins.pin(await self._engine_url(server), model, ranks, tokens))
        return most

    async def _engine_url(self, server: Server) -> str:
        """Return where a server listens to engines."""
        config = await self._ask("GET", f"{server.url}/config", Config)
        return f"tcp://{bracketed(server.instance.ip)}:{config.mp.port}"

    async def health(self, server: Server) -> dict[int, int]:
        """Return 0 for each engine of a healthy server.

        Raises:
            BadGatewayError: it is not healthy, or cannot be reached.
        """
        await self._ask("GET", f"{server.url}/healthcheck", msgspec.Raw)
        return dict.fromkeys(sorted(server.numbers.values()), 0)


def _require(holds: bool, param: str, message: str) -> None:
    if not holds:
        raise InvalidRequestError(f"{param}: {message}", param=param)
