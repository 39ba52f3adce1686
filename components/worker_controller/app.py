"""The REST API: routes of the controller, and the shape of their answers. Knows HTTP; what happens is the controller's."""

from importlib.resources import files

import msgspec
from aiohttp import web

from components.http.edge import Edge, json_response
from components.wire.errors import UnprocessableError
from components.worker_controller.answers import Created, Deleted, Engines, Health, Root, SleepRequest, Workers
from components.worker_controller.controller import Controller
from components.worker_controller.engine import Engine
from components.worker_controller.engine_request import read_request
from components.worker_controller.openapi import document

OPEN_ROUTES = frozenset({"/health", "/docs", "/openapi.json"})
"""Routes that need no token: they tell nothing but that the controller is there, and what it is."""


class Api:
    """The routes."""

    def __init__(self, controller: Controller, edge: Edge) -> None:
        self._controller = controller
        self._edge = edge
        self._document = msgspec.json.encode(document())

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        return self._edge.application(
            [
                web.get("/", self._root),
                web.get("/health", self._health),
                web.get("/docs", self._docs),
                web.get("/openapi.json", self._openapi),
                web.get("/workers", self._workers),
                web.get("/engines", self._list),
                web.post("/engines", self._create),
                web.get("/engines/{uuid}", self._status),
                web.delete("/engines/{uuid}", self._delete),
                web.get("/engines/{uuid}/load_timings", self._load_timings),
                web.post("/engines/{uuid}/sleep", self._sleep),
                web.post("/engines/{uuid}/wake_up", self._wake_up),
            ]
        )

    async def _root(self, _: web.Request) -> web.Response:
        workers = len(self._controller.pool.slots)
        return json_response(Root("penstock worker controller", "running", workers))

    async def _health(self, _: web.Request) -> web.Response:
        pool, living = self._controller.pool, len(self._controller.living())
        health = Health("healthy" if pool.ready else "starting", len(pool.slots), living)
        return json_response(health, 200 if pool.ready else 503)

    async def _docs(self, _: web.Request) -> web.Response:
        page = files("components.worker_controller").joinpath("docs.html").read_bytes()
        return web.Response(body=page, content_type="text/html", charset="utf-8")

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    async def _workers(self, _: web.Request) -> web.Response:
        views = self._controller.pool.views()
        return json_response(Workers(len(views), views))

    async def _list(self, _: web.Request) -> web.Response:
        views = [engine.view() for engine in self._controller.engines.values()]
        return json_response(Engines(len(views), views))

    async def _create(self, request: web.Request) -> web.Response:
        asked = read_request(await self._edge.read(request), consent=self._controller.settings.trust_remote_code)
        return json_response(Created.of(await self._controller.create(asked)))

    async def _status(self, request: web.Request) -> web.Response:
        return json_response(self._named(request).view())

    async def _delete(self, request: web.Request) -> web.Response:
        engine = await self._controller.delete(request.match_info["uuid"])
        return json_response(Deleted(f"Engine {engine.uuid} deleted", engine.lease.numbers, engine.port))

    async def _load_timings(self, request: web.Request) -> web.Response:
        return json_response(self._named(request).load_timings())

    async def _sleep(self, request: web.Request) -> web.Response:
        data = await self._edge.read(request)
        try:
            level = msgspec.json.decode(data or b"{}", type=SleepRequest).level
        except msgspec.DecodeError as error:
            raise UnprocessableError(f"the body: {error}") from None
        engine = await self._controller.sleep(request.match_info["uuid"], level)
        return json_response(engine.view())

    async def _wake_up(self, request: web.Request) -> web.Response:
        return json_response((await self._controller.wake_up(request.match_info["uuid"])).view())

    def _named(self, request: web.Request) -> Engine:
        return self._controller.named(request.match_info["uuid"])
