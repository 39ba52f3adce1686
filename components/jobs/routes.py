"""The queue's HTTP server: jobs, held OpenAI calls, heartbeats, what travels by reference, and the workers' WebSocket.

Two doors: submitters show an API key, workers the key of workers. Both are open where no key is set.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from components.bus.client import BusError
from components.bus.member import Member
from components.graph.keys import ApiKeys
from components.http.edge import PROBES, Edge, Limits, json_response
from components.jobs.book import ANY
from components.jobs.calls import completion_in
from components.jobs.payload import PayloadError, read_payload
from components.jobs.service import JobService
from components.jobs.store import Store
from components.jobs.submitters import Submitters, away
from components.jobs.views import Submission
from components.jobs.worker_routes import FOR_WORKERS, WorkerRoutes, parse
from components.telemetry.metrics import CONTENT_TYPE, render
from components.wire.errors import (
    InvalidRequestError,
    PenstockError,
)
from components.wire.http_errors import error_body
from components.wire.jobs import JobStatus

_MAX_WAIT_S = 60.0
_MAX_LISTED = 1000
_MAX_BATCH = 1000

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
        self._edge = Edge(ApiKeys.from_environment(), limits, open_routes=PROBES | FOR_WORKERS)
        self._worker_routes = WorkerRoutes(service, store, self._edge, public_url)

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
                *self._worker_routes.table(),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
            ]
        )

    # -- submitters

    async def _submit(self, request: web.Request) -> web.Response:
        submission = parse(await self._edge.read(request), Submission)
        return json_response(await self._submitters.submit(submission), 201)

    async def _submit_batch(self, request: web.Request) -> web.Response:
        """Take many jobs; each is answered for itself."""
        batch = parse(await self._edge.read(request), _Batch)
        if len(batch.jobs) > _MAX_BATCH:
            raise InvalidRequestError(f"jobs: at most {_MAX_BATCH} at a time", param="jobs")

        async def one(data: msgspec.Raw) -> Any:
            try:
                view = await self._submitters.submit(parse(data, Submission))
            except PenstockError as error:
                return msgspec.Raw(error_body(error))
            return {"id": view.id, "status": view.status}

        return json_response({"jobs": await asyncio.gather(*[one(data) for data in batch.jobs])})

    async def _statuses(self, request: web.Request) -> web.Response:
        ids = parse(await self._edge.read(request), _Ids).ids
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
        body = parse(await self._edge.read(request), dict[str, Any])
        stream, options = body.pop("stream", False) is True, body.pop("stream_options", None)
        config_id = request.headers.get("x-penstock-config-id") or ANY
        payload = msgspec.json.encode(body)
        try:
            read_payload(payload)
        except PayloadError as error:
            raise InvalidRequestError(str(error), param=str(error).partition(":")[0]) from None
        if not stream:
            return json_response(completion_in(await self._submitters.calls.hold(config_id, payload)))
        with_usage = isinstance(options, dict) and options.get("include_usage") is True
        async with aclosing(self._submitters.calls.hold_stream(config_id, payload)) as chunks:
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
            shown["unfinished"] = await self._store.queue.browse.count()
            shown["dead"] = await self._store.queue.dead.count()
        except BusError:
            return json_response(shown | {"status": "the store does not answer"}, 503)
        return json_response(shown)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = await asyncio.to_thread(render, [self._member.metrics()])
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


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
