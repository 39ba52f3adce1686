"""What every request passes on its way in and out: its id, its key, the limits, and every error in OpenAI's shape.

Knows HTTP and aiohttp. What a route does is its component's business.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from random import getrandbits
from typing import Any

import msgspec
from aiohttp import web

from components.graph.keys import ApiKeys
from components.telemetry.logs import trail
from components.telemetry.tracing import span
from components.wire.errors import (
    HTTP_STATUS,
    BodyTooLargeError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    PenstockError,
    RequestTimeoutError,
)
from components.wire.http_errors import error_body, error_headers

log = logging.getLogger(__name__)

JSON = "application/json"
REQUEST_ID = web.RequestKey("request_id", str)
RECEIVED_S = web.RequestKey("received_s", float)  # on the monotonic clock
API_KEY = web.RequestKey[str | None]("api_key", object)  # type: ignore[arg-type]  # unions have no class
PROBES = frozenset({"/health", "/ready"})

_NEVER_WAITS_BYTES = 16 * 1024  # with nothing before it, asyncio takes so much without making the writer wait
_BEGUN = web.RequestKey("begun", bool)
_NOT_ID = re.compile(r"[^A-Za-z0-9._-]")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answered = Callable[[str, int], None]


@dataclass(frozen=True)
class Limits:
    """What a client may send, and how slowly.

    Attributes:
        max_body_bytes: longer bodies get 413.
        stall_timeout_s: for the head of a request, for its body, and for taking a piece of the answer; then it is cut off.
    """

    max_body_bytes: int = 8 * 1024 * 1024
    stall_timeout_s: float = 30.0


LIMITS = web.AppKey("limits", Limits)


class Stream(web.StreamResponse):
    """A response that is written in pieces; its head leaves with the first of them, in one call to the kernel."""

    _send_headers_immediately = False  # aiohttp's own switch, which its whole responses turn off; without it: one call more


class Edge:
    """Makes applications whose requests have an id and a good key, and whose errors all look the same."""

    def __init__(
        self,
        keys: ApiKeys,
        limits: Limits,
        answered: Answered = lambda route, status: None,
        open_routes: frozenset[str] = PROBES,
    ) -> None:
        """Prepare.

        Args:
            keys: who may ask.
            limits: what they may send.
            answered: called with the route and the status of everything answered; 499 when the client is gone.
            open_routes: these need no key.
        """
        self._limits = limits
        self._keys = keys
        self._answered = answered
        self._open_routes = open_routes

    def application(self, routes: Iterable[web.AbstractRouteDef]) -> web.Application:
        """Return an application of `routes`. They find `REQUEST_ID`, `RECEIVED_S` and `API_KEY` in the request."""
        app = web.Application(client_max_size=self._limits.max_body_bytes, middlewares=[self._pass])
        app[LIMITS] = self._limits
        app.add_routes(routes)
        app.on_response_prepare.append(_begin)
        return app

    async def read(self, request: web.Request) -> bytes:
        """Return the body.

        Raises:
            BodyTooLargeError: it is longer than the limit, or says that it will be.
            InvalidRequestError: it is not what its headers announce.
            RequestTimeoutError: it did not come in time.
        """
        most = self._limits.max_body_bytes
        if (request.content_length or 0) > most:
            raise BodyTooLargeError(f"the body has {request.content_length} bytes; this server takes at most {most}")
        try:
            if (
                request.content.is_eof()
            ):  # all of it is here already, as most bodies are; a timer would cost more than reading
                return await request.read()
            async with asyncio.timeout(self._limits.stall_timeout_s):
                return await request.read()
        except TimeoutError:
            raise RequestTimeoutError("the body did not come in time") from None
        except web.HTTPRequestEntityTooLarge:
            raise BodyTooLargeError(f"the body is longer than the {most} bytes this server takes") from None
        except web.RequestPayloadError:
            raise InvalidRequestError("the body cannot be read as its headers announce it") from None

    async def write(self, request: web.Request, response: web.StreamResponse, data: bytes, *, last: bool = False) -> None:
        """Send a piece of a stream, and with the last one its end.

        Raises:
            ConnectionError: the client is gone, or has taken nothing for too long and was cut off.
        """
        writing = response.write_eof(data) if last else response.write(data)
        if (
            request.transport is not None
            and not request.transport.get_write_buffer_size()
            and len(data) < _NEVER_WAITS_BYTES
        ):
            return await writing
        try:
            async with asyncio.timeout(self._limits.stall_timeout_s):
                await writing
        except TimeoutError:
            log.info("cut off a client that reads nothing", extra={"request_id": request[REQUEST_ID]})
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the client reads nothing") from None

    @web.middleware
    async def _pass(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request[REQUEST_ID] = _NOT_ID.sub("", request.headers.get("x-request-id", ""))[:128] or f"{getrandbits(128):032x}"
        request[RECEIVED_S] = time.monotonic()
        route = request.match_info.route.resource
        label = route.canonical if route else "other"
        if request.method != "POST":
            return await self._answer(request, handler, label)
        with span(f"POST {label}", request.headers.get("traceparent", ""), request_id=request[REQUEST_ID]) as traced:
            response = await self._answer(request, handler, label)
            traced.set(status=response.status)
            return response

    async def _answer(self, request: web.Request, handler: Handler, label: str) -> web.StreamResponse:
        status = 499
        try:
            is_open = label in self._open_routes
            request[API_KEY] = None if is_open else self._keys.check(request.headers.get("Authorization"))
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
            self._answered(label, status)
        return response


def json_response(value: Any, status: int = 200) -> web.Response:
    """Return `value` as JSON."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=JSON)


async def _begin(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Take note that a response begins, and give it the request's id."""
    request[_BEGUN] = True
    if REQUEST_ID in request:
        response.headers["x-request-id"] = request[REQUEST_ID]


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
        headers = error_headers(error)
        return web.Response(body=error_body(error), status=HTTP_STATUS[error.code], content_type=JSON, headers=headers)
    if request.transport is not None:
        request.transport.close()
    raise asyncio.CancelledError
