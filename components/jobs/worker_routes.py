"""The workers' door of the queue's HTTP server: their WebSocket, their heartbeats, and what travels by reference."""

import time
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from components.bus.client import BusError
from components.graph.keys import ApiKeys
from components.http.edge import JSON, Edge, json_response
from components.jobs.claims import RecordedError, RepeatedError, StaleError, resolve
from components.jobs.held import Held
from components.jobs.outcomes import result_name
from components.jobs.service import JobService
from components.jobs.sockets import Socket
from components.jobs.store import Store
from components.jobs.submitters import away
from components.jobs.views import Heartbeat, WorkerView, worker_view
from components.wire.errors import ConflictError, InvalidRequestError, NotFoundError

FOR_WORKERS = frozenset({"/ws", "/api/heartbeats", "/jobs/{id}/payload", "/jobs/{id}/result"})
"""Routes that ask for a worker's key instead of a submitter's."""

_MAX_HEARTBEATS = 10_000
_HEARTBEAT_KEPT_S = 3600.0

T = TypeVar("T")


class WorkerRoutes:
    """The routes."""

    def __init__(self, service: JobService, store: Store, edge: Edge, public_url: str | None) -> None:
        """Prepare.

        Args:
            service: hears workers.
            store: for what travels by reference.
            edge: reads bodies.
            public_url: where workers reach this server, if not as they say themselves.
        """
        self._service = service
        self._store = store
        self._edge = edge
        self._public_url = public_url
        self._keys = ApiKeys.of_workers()
        self._heartbeats: dict[str, tuple[Heartbeat, float]] = {}

    def table(self) -> list[web.AbstractRouteDef]:
        """Return the routes."""
        return [
            web.get("/ws", self._socket),
            web.get("/api/workers", self._workers),
            web.post("/api/heartbeats", self._heartbeat),
            web.get("/jobs/{id}/payload", self._payload),
            web.put("/jobs/{id}/result", self._result),
        ]

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        self._check_worker(request)
        return await Socket(self._base_url(request)).run(request, self._service)

    async def _heartbeat(self, request: web.Request) -> web.Response:
        self._check_worker(request)
        beat = parse(await self._edge.read(request), Heartbeat)
        now_s = time.monotonic()
        self._heartbeats[beat.instance_id] = (beat, now_s)
        if len(self._heartbeats) > _MAX_HEARTBEATS:
            del self._heartbeats[min(self._heartbeats, key=lambda name: self._heartbeats[name][1])]
        return json_response({"ok": True})

    async def _workers(self, _: web.Request) -> web.Response:
        now_s, book = time.monotonic(), self._service.dispatch.book
        recent = {name for name, (_, at_s) in self._heartbeats.items() if now_s - at_s < _HEARTBEAT_KEPT_S}
        views: list[WorkerView] = [
            worker_view(name, book.workers.get(name), self._heartbeats.get(name), now_s)
            for name in sorted(recent | set(book.workers))
        ]
        return json_response({"workers": views})

    async def _payload(self, request: web.Request) -> web.Response:
        """Give a long payload to the worker that has the job."""
        self._check_worker(request)
        try:
            held = await self._referred(request)
            return web.Response(body=await self._store.payload(held.job), content_type=JSON)
        except BusError as error:
            raise away(error) from error

    async def _result(self, request: web.Request) -> web.Response:
        """Take a long result, whose `job_result_ref` will follow."""
        self._check_worker(request)
        data = await self._edge.read(request)
        parse(data, dict[str, Any])
        try:
            held = await self._referred(request)
            await self._store.objects.put(result_name(held.job.id, request.query["fence_token"]), data)
        except BusError as error:
            raise away(error) from error
        return web.Response(status=204)

    async def _referred(self, request: web.Request) -> Held:
        """Return the job that a link in a frame refers to.

        Raises:
            ConflictError: it is not the worker's, or not any more.
            BusError: the store cannot be asked.
        """
        worker = self._service.dispatch.book.workers.get(request.query.get("worker_id", ""))
        if worker is None:
            raise NotFoundError("no such worker is connected", param="worker_id")
        job_id, fence = request.match_info["id"], request.query.get("fence_token", "")
        try:
            return await resolve(self._service.dispatch, self._store, worker, job_id, fence)
        except StaleError as error:
            raise ConflictError(str(error), param="fence_token") from None
        except (RepeatedError, RecordedError):
            raise ConflictError("the job is finished", param="fence_token") from None

    def _check_worker(self, request: web.Request) -> None:
        self._keys.check(request.headers.get("Authorization"))

    def _base_url(self, request: web.Request) -> str:
        return (self._public_url or f"{request.scheme}://{request.host}").rstrip("/")


def parse(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Return a body.

    Raises:
        InvalidRequestError: it is none of this kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"the body: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequestError("the body is not valid JSON in UTF-8") from None
