"""The REST API over HTTP: LMCache's contract, its description (`/openapi.json`, `/docs`), and metrics.

Knows aiohttp. What a call does is the controller's business.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from components.cache_controller import contract
from components.cache_controller.controller import Controller
from components.cache_controller.description import docs_page, openapi
from components.http.edge import Edge, json_response
from components.telemetry.metrics import CONTENT_TYPE
from components.wire.errors import InvalidRequestError, UnprocessableError

OPEN_ROUTES = frozenset({"/ready", "/openapi.json", "/docs"})
"""These need no key; they tell nothing of what is cached."""


@dataclass(frozen=True)
class Call:
    """One POST of the contract.

    Attributes:
        path: where.
        body: what is sent.
        answer: what comes back.
        run: does it.
    """

    path: str
    body: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    run: Callable[[Any], Awaitable[msgspec.Struct]]


def calls(controller: Controller) -> list[Call]:
    """Return the contract."""
    return [
        Call("/query_worker_info", contract.QueryWorkerInfo, contract.WorkerInfos, controller.query_worker_info),
        Call("/query_instance", contract.QueryInstance, contract.InstanceFound, controller.query_instance),
        Call("/lookup", contract.TokensBody, contract.Layout, controller.lookup),
        Call("/full_lookup", contract.TokensBody, contract.FullLayout, controller.full_lookup),
        Call("/clear", contract.Clear, contract.NumTokens, controller.clear),
        Call("/pin", contract.Pin, contract.NumTokens, controller.pin),
        Call("/compress", contract.Compress, contract.NumTokens, controller.compress),
        Call("/decompress", contract.Compress, contract.NumTokens, controller.decompress),
        Call("/move", contract.Move, contract.NumTokens, controller.move),
        Call("/health", contract.Health, contract.HealthCodes, controller.health),
        Call("/check_finish", contract.CheckFinish, contract.EventStatus, controller.check_finish),
    ]


class App:
    """The routes.

    Args:
        controller: does the work.
        edge: the frame every request passes.
        registry: metrics.
    """

    def __init__(self, controller: Controller, edge: Edge, registry: CollectorRegistry) -> None:
        self._controller = controller
        self._edge = edge
        self._registry = registry
        self._calls = calls(controller)
        self._description = msgspec.json.encode(openapi([(call.path, call.body, call.answer) for call in self._calls]))

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        return self._edge.application(list(self._routes()))

    def _routes(self) -> Iterator[web.AbstractRouteDef]:
        for call in self._calls:
            yield web.post(call.path, self._answering(call))
        yield web.get("/controller/workers", self._workers)
        yield web.get("/controller/key-stats", self._key_stats)
        yield web.get("/metrics", self._metrics)
        yield web.get("/ready", self._ready)
        yield web.get("/openapi.json", self._openapi)
        yield web.get("/docs", self._docs)

    def _answering(self, call: Call) -> Callable[[web.Request], Awaitable[web.Response]]:
        decoder = msgspec.json.Decoder(call.body)

        async def answer(request: web.Request) -> web.Response:
            return json_response(await call.run(_decode(decoder, await self._edge.read(request))))

        return answer

    async def _workers(self, request: web.Request) -> web.Response:
        return json_response(self._controller.workers(request.query.get("instance_id")))

    async def _key_stats(self, _: web.Request) -> web.Response:
        return json_response(self._controller.key_stats())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE})

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.Response(body=self._description, content_type="application/json")

    async def _docs(self, _: web.Request) -> web.Response:
        page = docs_page([(call.path, call.body, call.answer) for call in self._calls])
        return web.Response(text=page, content_type="text/html")


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    """Return a body.

    Raises:
        UnprocessableError: a field is missing or of the wrong type.
        InvalidRequestError: it is no JSON.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise UnprocessableError(f"the body: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequestError("the body is not valid JSON in UTF-8") from None
