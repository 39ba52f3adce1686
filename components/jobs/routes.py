"""The queue's HTTP server: jobs, held OpenAI calls, heartbeats, what travels by reference, and the workers' WebSocket.

Two doors: submitters show an API key, workers the key of workers. Both are open where no key is set.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from components.bus.client import BusError
from components.bus.member import Member
from components.graph.keys import ApiKeys
from components.http.edge import JSON, PROBES, Edge, Limits, json_response
from components.jobs.book import ANY
from components.jobs.held import Held
from components.jobs.payload import PayloadError, read_payload
from components.jobs.service import JobService, RecordedError, RepeatedError, StaleError, result_name
from components.jobs.sockets import Socket
from components.jobs.store import Store
from components.jobs.submitters import Submitters, away, completion_in
from components.jobs.views import Heartbeat, Submission, WorkerView, worker_view
from components.telemetry.metrics import CONTENT_TYPE, render
from components.wire.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
)
from components.wire.http_errors import error_body
from components.wire.jobs import JobStatus

_FOR_WORKERS = frozenset({"/ws", "/api/heartbeats", "/jobs/{id}/payload", "/jobs/{id}/result"})
_MAX_WAIT_S = 60.0
_MAX_LISTED = 1000
_MAX_BATCH = 1000
_MAX_HEARTBEATS = 10_000
_HEARTBEAT_KEPT_S = 3600.0

T = TypeVar("T")


class _Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    jobs: list[msgspec.Raw]


class _Ids(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ids: list[str]


class Routes:
    """The routes."""

    def __init__(
        self,
        service: JobService,
        submitters: Submitters,
        store: Store,
        member: Member,
        limits: Limits,
        public_url: str | None,
    ) -> None:
        """Prepare.

        Args:
            service: hears workers.
            submitters: hears everybody else.
            store: for what travels by reference.
            member: this process's metrics.
            limits: of requests.
            public_url: where workers reach this server, if not as they say themselves.
        """
        self._service = service
        self._submitters = submitters
        self._store = store
        self._member = member
        self._public_url = public_url
        self._worker_keys = ApiKeys.of_workers()
        self._edge = Edge(ApiKeys.from_environment(), limits, open_routes=PROBES | _FOR_WORKERS)
        self._heartbeats: dict[str, tuple[Heartbeat, float]] = {}

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        return self._edge.application(
            [
                web.post("/jobs", self._submit),
                web.post("/jobs/batch", self._submit_batch),
                web.post("/jobs/status", self._statuses),
                web.get("/jobs", self._list),
                web.get("/jobs/{id}", self._look),
                web.get("/dead", self._dead),
                web.post("/dead/{id}/redrive", self._redrive),
                web.delete("/dead/{id}", self._drop),
                web.post("/v1/chat/completions", self._chat),
                web.get("/api/workers", self._workers),
                web.post("/api/heartbeats", self._heartbeat),
                web.get("/ws", self._socket),
                web.get("/jobs/{id}/payload", self._payload),
                web.put("/jobs/{id}/result", self._result),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
            ]
        )

    # -- submitters

    async def _submit(self, request: web.Request) -> web.Response:
        submission = _parse(await self._edge.read(request), Submission)
        return json_response(await self._submitters.submit(submission), 201)

    async def _submit_batch(self, request: web.Request) -> web.Response:
        """Take many jobs; each is answered for itself."""
        batch = _parse(await self._edge.read(request), _Batch)
        if len(batch.jobs) > _MAX_BATCH:
            raise InvalidRequestError(f"jobs: at most {_MAX_BATCH} at a time", param="jobs")

        async def one(data: msgspec.Raw) -> Any:
            try:
                view = await self._submitters.submit(_parse(data, Submission))
            except PenstockError as error:
                return msgspec.Raw(error_body(error))
            return {"id": view.id, "status": view.status}

        return json_response({"jobs": await asyncio.gather(*[one(data) for data in batch.jobs])})

    async def _statuses(self, request: web.Request) -> web.Response:
        ids = _parse(await self._edge.read(request), _Ids).ids
        if len(ids) > _MAX_LISTED:
            raise InvalidRequestError(f"ids: at most {_MAX_LISTED} at a time", param="ids")
        return json_response({"jobs": await self._submitters.statuses(ids)})

    async def _look(self, request: web.Request) -> web.Response:
        wait_s = _number(request, "wait_s", 0.0, _MAX_WAIT_S)
        return json_response(await self._submitters.look(request.match_info["id"], wait_s))

    async def _list(self, request: web.Request) -> web.Response:
        try:
            status = JobStatus(asked) if (asked := request.query.get("status")) else None
        except ValueError:
            raise InvalidRequestError(f"status: must be one of {', '.join(JobStatus)}", param="status") from None
        most = int(_number(request, "limit", 100, _MAX_LISTED))
        return json_response({"jobs": await self._submitters.list(status, most)})

    async def _dead(self, request: web.Request) -> web.Response:
        try:
            letters = await self._store.queue.dead.list(int(_number(request, "limit", 100, _MAX_LISTED)))
        except BusError as error:
            raise away(error) from error
        shown = [
            {"id": each.id, "reason": each.reason, "attempts": each.deliveries, "died_unix_s": each.died_unix_s}
            for each in letters
        ]
        return json_response({"dead": shown})

    async def _redrive(self, request: web.Request) -> web.Response:
        await self._submitters.redrive(request.match_info["id"])
        return json_response(await self._submitters.look(request.match_info["id"]))

    async def _drop(self, request: web.Request) -> web.Response:
        await self._submitters.drop(request.match_info["id"])
        return web.Response(status=204)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        """Hold an OpenAI call until a worker has done it."""
        body = _parse(await self._edge.read(request), dict[str, Any])
        stream, options = body.pop("stream", False) is True, body.pop("stream_options", None)
        config_id = request.headers.get("x-penstock-config-id") or ANY
        payload = msgspec.json.encode(body)
        try:
            read_payload(payload)
        except PayloadError as error:
            raise InvalidRequestError(str(error), param=str(error).partition(":")[0]) from None
        if not stream:
            return json_response(completion_in(await self._submitters.hold(config_id, payload)))
        with_usage = isinstance(options, dict) and options.get("include_usage") is True
        async with aclosing(self._submitters.hold_stream(config_id, payload)) as chunks:
            return await self._stream(request, chunks, with_usage=with_usage)

    async def _stream(self, request: web.Request, chunks: AsyncIterator[bytes], *, with_usage: bool) -> web.StreamResponse:
        """Send chunks as they come. An error before the first of them still gets a status; later it is the last event."""
        first = await anext(chunks)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        try:
            await self._event(request, response, first, with_usage=with_usage)
            async for chunk in chunks:
                await self._event(request, response, chunk, with_usage=with_usage)
            await self._edge.write(request, response, b"data: [DONE]\n\n")
        except PenstockError as error:
            await self._edge.write(request, response, b"event: error\ndata: " + error_body(error) + b"\n\n")
        await response.write_eof()
        return response

    async def _event(self, request: web.Request, response: web.StreamResponse, chunk: bytes, *, with_usage: bool) -> None:
        fields = msgspec.json.decode(chunk)
        if "completion" in fields:  # a worker that does not stream: all at once
            fields = _as_one_chunk(completion_in(chunk))
        if not with_usage:
            fields.pop("usage", None)
            if not fields.get("choices"):
                return
        await self._edge.write(request, response, b"data: " + msgspec.json.encode(fields) + b"\n\n")

    # -- workers

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        self._check_worker(request)
        return await Socket(self._base_url(request)).run(request, self._service)

    async def _heartbeat(self, request: web.Request) -> web.Response:
        self._check_worker(request)
        beat = _parse(await self._edge.read(request), Heartbeat)
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
        _parse(data, dict[str, Any])
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
        try:
            return await self._service.resolve(worker, request.match_info["id"], request.query.get("fence_token", ""))
        except StaleError as error:
            raise ConflictError(str(error), param="fence_token") from None
        except (RepeatedError, RecordedError):
            raise ConflictError("the job is finished", param="fence_token") from None

    def _check_worker(self, request: web.Request) -> None:
        self._worker_keys.check(request.headers.get("Authorization"))

    def _base_url(self, request: web.Request) -> str:
        return (self._public_url or f"{request.scheme}://{request.host}").rstrip("/")

    # -- all

    async def _health(self, _: web.Request) -> web.Response:
        """Tell how much there is to do; 503 while the store does not answer."""
        book = self._service.dispatch.book
        shown: dict[str, Any] = {
            "status": "ok",
            "workers": len(book.workers),
            "running": sum(len(worker.running) for worker in book.workers.values()),
        }
        try:
            shown["unfinished"] = await self._store.queue.count()
            shown["dead"] = await self._store.queue.dead.count()
        except BusError:
            return json_response(shown | {"status": "the store does not answer"}, 503)
        return json_response(shown)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = await asyncio.to_thread(render, [self._member.metrics()])
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def _parse(data: bytes | msgspec.Raw, kind: type[T]) -> T:
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


def _number(request: web.Request, name: str, default: float, most: float) -> float:
    try:
        value = float(request.query.get(name, default))
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise InvalidRequestError(f"{name}: must be 0 to {most:g}", param=name)
    return value


def _as_one_chunk(completion: dict[str, Any]) -> dict[str, Any]:
    """Return a whole completion as one chunk of a stream."""
    choices = [
        {"index": each["index"], "delta": each["message"], "finish_reason": each["finish_reason"]}
        for each in completion["choices"]
    ]
    return completion | {"object": "chat.completion.chunk", "choices": choices}
