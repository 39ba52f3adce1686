"""The protocol under the routes: what is no HTTP is refused in OpenAI's shape, and who is slow to ask is cut off.

Knows aiohttp's protocol and server, not what the routes do. aiohttp's own refusals repeat the bytes they are about, keys and
prompts among them; ours say what is wrong in fixed words.
"""

import asyncio
import logging
from typing import Any

from aiohttp import http_exceptions, web

from components.wire.errors import InvalidRequestError, PenstockError
from components.wire.http_errors import error_body

log = logging.getLogger(__name__)

_WHY: tuple[tuple[type[Exception], str], ...] = (
    (http_exceptions.LineTooLong, "the request line or a header is longer than this server takes"),
    (http_exceptions.ContentEncodingError, "the body cannot be decoded as its content-encoding announces it"),
    (http_exceptions.PayloadEncodingError, "the body cannot be read as its headers announce it"),
    (http_exceptions.InvalidHeader, "a header is not valid HTTP"),
    (http_exceptions.BadStatusLine, "the request line is not valid HTTP"),
)


class Connection(web.RequestHandler):
    """One client's connection."""

    def __init__(self, server: "Server", head_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a first request."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take in `data`; the first of a request begins the wait for its whole head."""
        super().data_received(data)
        if not self._asked:
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the wait."""
        self.asked()
        super().connection_lost(exc)

    def asked(self) -> None:
        """Take note that a request's head is complete."""
        self._asked = True
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    async def finish_response(self, request: web.BaseRequest, *args: Any) -> tuple[web.StreamResponse, bool]:
        """Send the rest of a response; what comes then is the next request, and it may be long in coming."""
        finished = await super().finish_response(request, *args)
        self._asked = False
        return finished

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Return the refusal of what is no HTTP.

        Raises:
            ConnectionError: a response is on its way already; the connection can only be closed.
        """
        self.asked()
        log.info("a request is not HTTP", extra={"error": type(exc).__name__})
        if request.writer.output_size > 0:
            raise ConnectionError("a response has begun")
        if status >= 500:
            return refusal(PenstockError("the server failed to answer; its log says why"), status)
        why = next((text for kind, text in _WHY if isinstance(exc, kind)), "the request is not valid HTTP")
        return refusal(InvalidRequestError(why), status)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = asyncio.get_running_loop().call_later(self._head_timeout_s, self.force_close)


class Server(web.Server):
    """Makes the connections of an application."""

    def __init__(self, made: web.Server, head_timeout_s: float, **kwargs: Any) -> None:
        """Prepare.

        Args:
            made: aiohttp's server of the application, whose place this takes.
            head_timeout_s: how long a connection may take to send the head of a request.
            kwargs: settings of aiohttp's server and request handler.
        """
        super().__init__(self._answer, request_factory=made.request_factory, handler_cancellation=True)
        self._inner = made.request_handler
        self._head_timeout_s = head_timeout_s
        self._settings = kwargs

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self, self._head_timeout_s, loop=asyncio.get_running_loop(), **self._settings)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if isinstance(request.protocol, Connection):
            request.protocol.asked()
        try:
            return await self._inner(request)
        except web.HTTPExpectationFailed as error:
            return refusal(InvalidRequestError("expect: only 100-continue is supported"), error.status)


def refusal(error: PenstockError, status: int) -> web.Response:
    """Return `error` as a response that ends the connection."""
    response = web.Response(body=error_body(error), status=status, content_type="application/json")
    response.force_close()
    return response
