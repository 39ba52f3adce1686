"""A NATS server of the user's own: credentials from the environment, TLS by the settings."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from components.bus.client import Bus, BusError
from components.bus.server import find_nats_server
from components.graph.schema import Nats
from components.wire.messages import Cancel
from tests.support.answers import Answered


@asynccontextmanager
async def own_server(folder: Path, *flags: str) -> AsyncIterator[str]:
    """Run a nats-server as a user would, on a free port, and yield its URL."""
    argv = [find_nats_server(), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(folder), *flags]
    process = await asyncio.create_subprocess_exec(*argv, stderr=(folder / "log").open("wb"))
    try:
        ports = folder / f"nats-server_{process.pid}.ports"
        async with asyncio.timeout(10):
            while not (ports.exists() and ports.read_text()):
                await asyncio.sleep(0.02)
        yield json.loads(ports.read_text())["nats"][0]
    finally:
        process.terminate()
        await process.wait()


async def test_user_and_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right ones are let in, wrong ones are one clear error that does not show them."""
    async with own_server(tmp_path, "--user", "me", "--pass", "secret") as url:
        monkeypatch.setenv("PENSTOCK_NATS_USER", "me")
        monkeypatch.setenv("PENSTOCK_NATS_PASSWORD", "secret")
        await _speak(Nats(url=url))
        monkeypatch.setenv("PENSTOCK_NATS_PASSWORD", "guess")
        with pytest.raises(BusError) as error:
            await Bus.connect(Nats(url=url), "x", wait_s=1)
        assert "guess" not in str(error.value)


async def test_tls(tmp_path: Path) -> None:
    """With the authority named in the settings the connection is encrypted; a certificate nobody vouches for is refused."""
    certificate, key = await asyncio.to_thread(_self_signed, tmp_path)
    async with own_server(tmp_path, "--tls", "--tlscert", str(certificate), "--tlskey", str(key)) as url:
        await _speak(Nats(url=url.replace("nats://", "tls://"), tls_ca_file=str(certificate)))
        with pytest.raises(BusError):
            await Bus.connect(Nats(url=url.replace("nats://", "tls://")), "x", wait_s=1)


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1, its own authority, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=nats", "-days", "1"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(argv, check=True, capture_output=True)
    return certificate, key


async def test_a_connection_closed_for_good_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not want us any more is not waited for; our own closing is no failure."""
    config = tmp_path / "nats.conf"
    config.write_text("authorization { token: before }")
    async with own_server(tmp_path, "--config", str(config)) as url:
        monkeypatch.setenv("PENSTOCK_NATS_TOKEN", "before")
        bus, closed = await Bus.connect(Nats(url=url), "test"), await Bus.connect(Nats(url=url), "test")
        await closed.close()
        assert (bus.failure, closed.failure) == ("", "")
        config.write_text("authorization { token: after }")
        _reload(tmp_path)
        reason = await asyncio.wait_for(bus.failed(), 10)
        assert reason.startswith("NATS closed the connection for good")
        assert "authorization" in reason
        assert not bus.connected
        await bus.close()
        assert closed.failure == ""


def _reload(folder: Path) -> None:
    """Have the server read its configuration again."""
    (ports,) = folder.glob("nats-server_*.ports")
    os.kill(int(ports.stem.partition("_")[2]), signal.SIGHUP)


async def _speak(nats: Nats) -> None:
    """Ask and answer once."""
    bus = await Bus.connect(nats, "x", wait_s=5)

    async def answer(_: Cancel) -> Answered:
        return Answered("w")

    await bus.serve("ask", Cancel, answer)
    assert await bus.request("ask", Cancel([]), Answered, 1) == Answered("w")
    await bus.close()
