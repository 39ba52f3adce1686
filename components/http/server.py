"""Listening: an application on an address, with or without TLS, until it is told to stop."""

import logging
import ssl
from dataclasses import dataclass

from aiohttp import web

from components.http.connection import Server
from components.http.edge import LIMITS

_BACKLOG = 4096


class ListenError(Exception):
    """The address or the certificate cannot be used; the text begins with the setting at fault."""


@dataclass(frozen=True)
class Address:
    """Where to listen.

    Attributes:
        host: address; loopback unless the user says otherwise.
        port: TCP port.
        tls_cert_file: PEM certificate chain; turns on HTTPS.
        tls_key_file: its PEM private key.
        shared: whether other processes listen on the same port, too.
    """

    host: str
    port: int
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    shared: bool = False


class Runner(web.AppRunner):
    """Runs an application on a `Server`, whose clients must send each head in time."""

    def __init__(self, app: web.Application, head_timeout_s: float, shutdown_timeout_s: float) -> None:
        super().__init__(app, shutdown_timeout=shutdown_timeout_s)
        self._head_timeout_s = head_timeout_s

    async def _make_server(self) -> web.Server:
        return Server(await super()._make_server(), self._head_timeout_s, access_log=None)


async def listen(app: web.Application, address: Address, drain_s: float) -> Runner:
    """Serve `app` until `cleanup` of what is returned.

    Args:
        app: as `Edge.application` makes it.
        address: where.
        drain_s: how long `cleanup` lets the open requests go on.

    Raises:
        ListenError: the port is taken or may not be had, or the certificate cannot be used.
    """
    # Malformed HTTP is its sender's affair; our own failures are logged at the edge.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    tls = _tls(address)
    runner = Runner(app, app[LIMITS].stall_timeout_s, drain_s)
    await runner.setup()
    site = web.TCPSite(
        runner, address.host, address.port, ssl_context=tls, backlog=_BACKLOG, reuse_port=address.shared or None
    )
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise ListenError(f"port: cannot listen on {address.host}:{address.port}: {error.strerror or error}") from error
    return runner


def _tls(address: Address) -> ssl.SSLContext | None:
    if address.tls_cert_file is None:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(address.tls_cert_file, address.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise ListenError(f"tls_cert_file: cannot be used: {error}") from error
    return context
