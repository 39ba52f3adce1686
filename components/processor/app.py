"""The HTTP surface: routes, server-sent events, and every error in OpenAI's shape.

Knows HTTP and aiohttp. What a request means is the pipeline's business.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from aiohttp import web

from components.bus.client import Bus
from components.bus.member import Member, Nothing
from components.graph.keys import ApiKeys
from components.graph.schema import Http
from components.processor.fleet import Fleet
from components.processor.metrics import Metrics
from components.processor.pipeline import Answering, Caller, Pipeline
from components.processor.responses import Model, encode, error_event, models_body
from components.processor.routing import route_headers
from components.processor.tokens_answer import detokenize_answer, tokenize_answer
from components.telemetry.logs import trail
from components.telemetry.metrics import CONTENT_TYPE, render
from components.wire.errors import (
    HTTP_STATUS,
    BodyTooLargeError,
    InvalidRequestError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    PenstockError,
    RequestTimeoutError,
)
from components.wire.http_errors import error_body, error_headers
from components.wire.messages import MetricsReply
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

_JSON = "application/json"
_SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_NOT_ID = re.compile(r"[^A-Za-z0-9._-]")
_SCRAPE_WAIT_S = 1.0
_MAX_SESSION_CHARS = 256
_ID = web.RequestKey("id", str)
_RECEIVED_S = web.RequestKey("received_s", float)
_BEGUN = web.RequestKey("begun", bool)
_API_KEY = web.RequestKey[str | None]("api_key", object)  # type: ignore[arg-type]  # unions have no class
_OPEN_ROUTES = frozenset({"/health", "/ready"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class App:
    """The routes, and what they need."""

    def __init__(
        self,
        http: Http,
        keys: ApiKeys,
        pipeline: Pipeline,
        fleet: Fleet,
        metrics: Metrics,
        bus: Bus,
        subjects: Subjects,
        member: Member,
    ) -> None:
        self._http = http
        self._keys = keys
        self._pipeline = pipeline
        self._fleet = fleet
        self._metrics = metrics
        self._bus = bus
        self._subjects = subjects
        self._member = member
        self._created = int(time.time())

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=self._http.max_body_bytes, middlewares=[self._edge])
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completion),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{model:.+}", self._model),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.get("/health", self._health),
                web.get("/ready", self._ready),
                web.get("/metrics", self._scrape),
            ]
        )
        return app

    @web.middleware
    async def _edge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give every request an id, check its key, and turn every error into OpenAI's shape."""
        request[_ID] = _NOT_ID.sub("", request.headers.get("x-request-id", ""))[:128] or secrets.token_hex(16)
        request[_RECEIVED_S] = time.monotonic()
        route = request.match_info.route.resource
        label = route.canonical if route else "other"
        status = 499
        try:
            key = None if label in _OPEN_ROUTES else self._keys.check(request.headers.get("Authorization"))
            request[_API_KEY] = key
            response = await handler(request)
            status = response.status
        except (PenstockError, web.HTTPException) as error:
            response = _refuse(request, error if isinstance(error, PenstockError) else _from_http(error))
            status = response.status
        except ConnectionError:
            # The client is gone; aiohttp takes this as it takes a disconnect.
            raise asyncio.CancelledError from None
        except Exception as error:  # noqa: BLE001 the outermost catch: a bug costs this request, not the others
            # Without the exception's text, which may hold what the client sent.
            log.error("a request failed", extra={"route": label, "error": trail(error)})  # noqa: TRY400
            response = _refuse(request, PenstockError("the server failed to answer; its log says why"))
            status = response.status
        finally:
            self._metrics.answered(label, status)
        if not response.prepared:
            response.headers["x-request-id"] = request[_ID]
        return response

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._pipeline.chat)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._pipeline.completion)

    async def _generate(
        self, request: web.Request, answer: Callable[[Caller], AbstractAsyncContextManager[Answering]]
    ) -> web.StreamResponse:
        session = _session(request)
        with self._metrics.admit(self._http.max_inflight_requests, request[_RECEIVED_S]) as clock:
            caller = Caller(await self._read(request), request[_ID], request[_API_KEY], clock, session)
            async with answer(caller) as answering:
                headers = {"x-request-id": request[_ID], "x-penstock-worker": ",".join(answering.workers)}
                headers |= route_headers(answering.routes)
                if answering.plan.stream:
                    return await self._stream(request, answering.parts, headers)
                body = b"".join([part async for part in answering.parts])
                return web.Response(body=body, content_type=_JSON, headers=headers)

    async def _stream(
        self, request: web.Request, parts: AsyncIterator[bytes], headers: dict[str, str]
    ) -> web.StreamResponse:
        """Send `parts` as they come. An error before the first of them still gets a status; later it is the last event."""
        first = await anext(parts)
        response = web.StreamResponse(headers=_SSE | headers)
        request[_BEGUN] = True
        await response.prepare(request)
        try:
            await self._write(request, response, first)
            async for part in parts:
                await self._write(request, response, part)
        except PenstockError as error:
            await self._write(request, response, error_event(error))
        await response.write_eof()
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        """Send `data`.

        Raises:
            ConnectionError: the client is gone, or has taken nothing for too long and was cut off.
        """
        try:
            async with asyncio.timeout(self._http.client_stall_timeout_s):
                await response.write(data)
        except TimeoutError:
            log.info("cut off a client that reads nothing", extra={"request_id": request[_ID]})
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the client reads nothing") from None

    async def _read(self, request: web.Request) -> bytes:
        most = self._http.max_body_bytes
        if (request.content_length or 0) > most:
            raise BodyTooLargeError(f"the body has {request.content_length} bytes; this server takes at most {most}")
        try:
            async with asyncio.timeout(self._http.client_stall_timeout_s):
                return await request.read()
        except TimeoutError:
            raise RequestTimeoutError("the body did not come in time") from None
        except web.HTTPRequestEntityTooLarge:
            raise BodyTooLargeError(f"the body is longer than the {most} bytes this server takes") from None
        except web.RequestPayloadError:
            raise InvalidRequestError("the body cannot be read as its headers announce it") from None

    async def _models(self, _: web.Request) -> web.Response:
        return web.Response(body=models_body([self._card()]), content_type=_JSON)

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != self._pipeline.model:
            raise ModelNotFoundError("this model is not served here", param="model")
        return web.Response(body=encode(self._card()), content_type=_JSON)

    def _card(self) -> Model:
        return Model(self._pipeline.model, self._created, self._fleet.context_tokens())

    async def _tokenize(self, request: web.Request) -> web.Response:
        data = await self._read(request)
        model, tokenizer, context_tokens = self._pipeline.model, self._pipeline.tokenizer, self._fleet.context_tokens()
        answer = await self._pipeline.off_loop(len(data), lambda: tokenize_answer(data, model, tokenizer, context_tokens))
        return web.Response(body=answer, content_type=_JSON)

    async def _detokenize(self, request: web.Request) -> web.Response:
        data = await self._read(request)
        model, tokenizer = self._pipeline.model, self._pipeline.tokenizer
        answer = await self._pipeline.off_loop(len(data), lambda: detokenize_answer(data, model, tokenizer))
        return web.Response(body=answer, content_type=_JSON)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, _: web.Request) -> web.Response:
        workers = len(self._fleet.ready())
        return web.Response(body=encode({"workers": workers}), content_type=_JSON, status=200 if workers else 503)

    async def _scrape(self, _: web.Request) -> web.Response:
        """Answer with the metrics of the whole graph."""
        expected = len(self._fleet.processes)
        replies = await self._bus.gather(self._subjects.scrape(), Nothing(), MetricsReply, _SCRAPE_WAIT_S, expected)
        if all(reply.process != self._member.name for reply in replies):
            replies.append(self._member.metrics())
        body = await asyncio.to_thread(render, sorted(replies, key=lambda reply: reply.process))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def _session(request: web.Request) -> str | None:
    """Return the session a client names in ``x-penstock-session``.

    Raises:
        InvalidRequestError: the name is too long.
    """
    session = request.headers.get("x-penstock-session") or None
    if session is not None and len(session) > _MAX_SESSION_CHARS:
        raise InvalidRequestError(f"x-penstock-session: at most {_MAX_SESSION_CHARS} characters", param="x-penstock-session")
    return session


def _from_http(error: web.HTTPException) -> PenstockError:
    """Return aiohttp's own refusals as ours."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowedError(f"use {', '.join(sorted(error.allowed_methods))} here")
    if isinstance(error, web.HTTPNotFound):
        return NotFoundError("there is nothing at this path")
    return InvalidRequestError(error.reason)


def _refuse(request: web.Request, error: PenstockError) -> web.Response:
    """Return `error` as a response; when one has begun already, close the connection, as no second one may follow in it.

    Raises:
        CancelledError: the connection was closed; aiohttp takes this as it takes a disconnect.
    """
    if not request.get(_BEGUN):
        return _error_response(error)
    if request.transport is not None:
        request.transport.close()
    raise asyncio.CancelledError


def _error_response(error: PenstockError) -> web.Response:
    return web.Response(
        body=error_body(error), status=HTTP_STATUS[error.code], content_type=_JSON, headers=error_headers(error)
    )
