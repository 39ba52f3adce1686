"""The HTTP surface: routes, server-sent events, and every error in OpenAI's shape.

Knows HTTP and aiohttp. What a request means is the pipeline's business.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from aiohttp import web

from components.bus.client import Bus
from components.bus.member import Member, Nothing
from components.graph.keys import ApiKeys
from components.graph.schema import Http
from components.http.edge import API_KEY, JSON, RECEIVED_S, REQUEST_ID, Edge, Limits, Stream
from components.processor.fleet import Fleet
from components.processor.metrics import Metrics
from components.processor.pipeline import Answering, Caller, Pipeline
from components.processor.responses import Model, encode, error_event, models_body
from components.processor.routing import route_headers
from components.processor.tokens_answer import detokenize_answer, tokenize_answer
from components.telemetry.metrics import CONTENT_TYPE, render
from components.wire.errors import InvalidRequestError, ModelNotFoundError, PenstockError
from components.wire.process import MetricsReply
from components.wire.subjects import Subjects

_SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_SCRAPE_WAIT_S = 1.0
_MAX_SESSION_CHARS = 256


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
        self._edge = Edge(keys, Limits(http.max_body_bytes, http.client_stall_timeout_s), metrics.answered)
        self._pipeline = pipeline
        self._fleet = fleet
        self._metrics = metrics
        self._bus = bus
        self._subjects = subjects
        self._member = member
        self._created = int(time.time())

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        return self._edge.application(
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

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._pipeline.chat)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._pipeline.completion)

    async def _generate(
        self, request: web.Request, answer: Callable[[Caller], AbstractAsyncContextManager[Answering]]
    ) -> web.StreamResponse:
        session = _session(request)
        with self._metrics.admit(self._http.max_inflight_requests, request[RECEIVED_S]) as clock:
            caller = Caller(await self._edge.read(request), request[REQUEST_ID], request[API_KEY], clock, session)
            async with answer(caller) as answering:
                if answering.plan.stream:
                    return await self._stream(request, answering)
                body = b"".join([part.data async for part in answering.parts])
                return web.Response(body=body, content_type=JSON, headers=_headers(answering))

    async def _stream(self, request: web.Request, answering: Answering) -> web.StreamResponse:
        """Send parts as they come. An error before the first of them still gets a status; later it is the last event."""
        parts = answering.parts
        first = await anext(parts)
        response = Stream(headers=_SSE | _headers(answering))
        await response.prepare(request)
        try:
            await self._edge.write(request, response, first.data, last=first.last)
            async for part in parts:
                await self._edge.write(request, response, part.data, last=part.last)
        except PenstockError as error:
            await self._edge.write(request, response, error_event(error), last=True)
        return response

    async def _models(self, _: web.Request) -> web.Response:
        return web.Response(body=models_body([self._card()]), content_type=JSON)

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != self._pipeline.model:
            raise ModelNotFoundError("this model is not served here", param="model")
        return web.Response(body=encode(self._card()), content_type=JSON)

    def _card(self) -> Model:
        return Model(self._pipeline.model, self._created, self._fleet.context_tokens())

    async def _tokenize(self, request: web.Request) -> web.Response:
        data = await self._edge.read(request)
        model, tokenizer, context_tokens = self._pipeline.model, self._pipeline.tokenizer, self._fleet.context_tokens()
        answer = await self._pipeline.off_loop(len(data), lambda: tokenize_answer(data, model, tokenizer, context_tokens))
        return web.Response(body=answer, content_type=JSON)

    async def _detokenize(self, request: web.Request) -> web.Response:
        data = await self._edge.read(request)
        model, tokenizer = self._pipeline.model, self._pipeline.tokenizer
        answer = await self._pipeline.off_loop(len(data), lambda: detokenize_answer(data, model, tokenizer))
        return web.Response(body=answer, content_type=JSON)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, _: web.Request) -> web.Response:
        workers = len(self._fleet.ready())
        return web.Response(body=encode({"workers": workers}), content_type=JSON, status=200 if workers else 503)

    async def _scrape(self, _: web.Request) -> web.Response:
        """Answer with the metrics of the whole graph."""
        expected = len(self._fleet.processes)
        replies = await self._bus.gather(self._subjects.scrape(), Nothing(), MetricsReply, _SCRAPE_WAIT_S, expected)
        if all(reply.process != self._member.name for reply in replies):
            replies.append(self._member.metrics())
        body = await asyncio.to_thread(render, sorted(replies, key=lambda reply: reply.process))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def _headers(answering: Answering) -> dict[str, str]:
    """Return what tells the client who answers and how that was chosen."""
    generation = answering.generation
    return {"x-penstock-worker": ",".join(generation.workers)} | route_headers(generation.routes)


def _session(request: web.Request) -> str | None:
    """Return the session a client names in ``x-penstock-session``.

    Raises:
        InvalidRequestError: the name is too long.
    """
    session = request.headers.get("x-penstock-session") or None
    if session is not None and len(session) > _MAX_SESSION_CHARS:
        raise InvalidRequestError(f"x-penstock-session: at most {_MAX_SESSION_CHARS} characters", param="x-penstock-session")
    return session
