"""The programs penstock is measured against: how each is installed, into an environment of its own, and how it is run.

    python -m benchmarks.peers [NAME…]     # install them; what is there already stays

Everything listens on loopback only, but for the event sockets of Dynamo's mocker, which know no other address than all.
Environments live in `.peers/` of the checkout, or in the folder PENSTOCK_PEERS names.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.servers import Server, free_port, running

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / (os.environ.get("PENSTOCK_PEERS") or ".peers")
INSTALL_S = 900
_REQUIREMENTS = ("aiohttp", "msgspec", "prometheus-client", "pyzmq", "redis", "tqdm", "transformers", "zstandard")


class PeerError(Exception):
    """A peer cannot be installed or does not start; the text says why."""


@dataclass(frozen=True)
class Peer:
    """One program.

    Attributes:
        name: of the environment, and in the tables.
        packages: what pip installs, one call an entry; an entry's words are pip's arguments.
        package: whose version is reported.
        interpreter: what makes its environment; default: the Python that runs this.
    """

    name: str
    packages: tuple[tuple[str, ...], ...]
    package: str
    interpreter: str = sys.executable

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return FOLDER / self.name / "bin" / "python"

    def version(self) -> str:
        """Return the installed version, empty when it is not installed."""
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        if not self.python.exists():
            return ""
        done = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=False, timeout=60)
        return done.stdout.strip()

    def install(self) -> str:
        """Install it unless it is there; returns its version.

        Raises:
            PeerError: pip could not; the text is its last line.
        """
        if version := self.version():
            return version
        FOLDER.mkdir(parents=True, exist_ok=True)
        if shutil.which(self.interpreter) is None:
            raise PeerError(f"{self.interpreter} is not there")
        _call([self.interpreter, "-m", "venv", str(FOLDER / self.name)])
        for arguments in self.packages:
            _call([str(self.python), "-m", "pip", "install", "--quiet", *arguments])
        return self.version()

    def expect(self) -> None:
        """Make sure that it is installed: no piece's time goes into that.

        Raises:
            PeerError: it is not.
        """
        if not self.version():
            raise PeerError(f"{self.name} is not installed; `python -m benchmarks.peers {self.name}` tries to")


# ai-dynamo's own list of requirements names a stub that PyPI cannot resolve; these are what its frontend and mocker import.
DYNAMO = Peer(
    "dynamo",
    (("ai-dynamo-runtime==1.6.1", *_REQUIREMENTS, "kubernetes<33", "pyyaml"), ("--no-deps", "ai-dynamo==1.6.1")),
    "ai-dynamo",
)
SGLANG_ROUTER = Peer("sglang-router", (("sglang-router==0.3.2",),), "sglang-router")
VLLM_ROUTER = Peer("vllm-router", (("vllm-router==0.1.17",),), "vllm-router")
PRODUCTION_STACK = Peer(  # not on PyPI, where its package's name belongs to another router
    "production-stack",
    (("git+https://github.com/vllm-project/production-stack.git@7453f79addd0ef8c2a3d200722802f00a27b023e",),),
    "vllm-router",
    interpreter="python3.12",
)
PEERS = {peer.name: peer for peer in (DYNAMO, SGLANG_ROUTER, VLLM_ROUTER, PRODUCTION_STACK)}


@dataclass(frozen=True)
class System:
    """A running system under load.

    Attributes:
        name: in the tables.
        url: of its OpenAI endpoint.
        pids: its first processes; their children belong to it.
        workers: those of them that stand in for engines.
    """

    name: str
    url: str
    pids: tuple[int, ...]
    workers: tuple[int, ...] = field(default=())


@contextmanager
def dynamo(model: Path, workers: int = 4, joined: bool = False) -> Iterator[System]:
    """Run Dynamo's frontend with its KV router, and its mockers: each a process, as an engine's worker is, or all in one.

    A thousand times the speed of a GPU is where its mocker is fastest; 0, "infinite", makes its steps wait for a timer.
    """
    DYNAMO.expect()
    with tempfile.TemporaryDirectory() as store, ExitStack() as stack:
        plane = ["--discovery-backend", "file", "--event-plane", "zmq"]
        hosts = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_SYSTEM_HOST")
        environment = dict.fromkeys(hosts, "127.0.0.1") | {"DYN_FILE_KV": store, "DYN_LOG": "error", "HF_HUB_OFFLINE": "1"}
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        mocker = [str(DYNAMO.python), "-m", "dynamo.mocker", "--model-path", str(model), "--model-name", "demo"]
        mocker += ["--num-workers", str(workers if joined else 1), "--speedup-ratio", "1000", "--block-size", "32", *plane]
        frontend = [str(DYNAMO.python), "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
        frontend += ["--router-mode", "kv", *plane]
        front = stack.enter_context(running("dynamo", frontend, url, "/health", environment))
        backs = [
            stack.enter_context(running("dynamo mocker", mocker, url, "/v1/models", environment, answer='"demo"')).pid
            for _ in range(1 if joined else workers)
        ]
        _until_registered(Path(store), workers)
        yield System("dynamo", url, (front.pid, *backs), tuple(backs))


def _until_registered(store: Path, workers: int) -> None:
    """Wait until so many mockers stand in Dynamo's discovery folder."""
    until = time.monotonic() + 60
    while len(list(store.glob("v1/instances/*%2Fgenerate%2F*"))) < workers:
        if time.monotonic() > until:
            raise PeerError(f"not all of {workers} mockers register")
        time.sleep(0.1)


@contextmanager
def sglang_router(_: Path) -> Iterator[System]:
    """Run SGLang's router in front of one mock worker."""
    SGLANG_ROUTER.expect()
    words = ["-m", "sglang_router.launch_router", "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    words += ["--log-level", "error"]
    with _proxy(SGLANG_ROUTER, words, "--worker-urls") as system:
        yield system


@contextmanager
def vllm_router(_: Path) -> Iterator[System]:
    """Run vLLM's router in front of one mock worker."""
    VLLM_ROUTER.expect()
    words = ["-m", "vllm_router.launch_router", "--prometheus-port", str(free_port()), "--log-level", "error"]
    with _proxy(VLLM_ROUTER, words, "--worker-urls") as system:
        yield system


@contextmanager
def production_stack(_: Path) -> Iterator[System]:
    """Run production-stack's router in front of one mock worker."""
    PRODUCTION_STACK.expect()
    words = [
        "-m",
        "vllm_router.app",
        "--service-discovery",
        "static",
        "--static-models",
        "demo",
        "--routing-logic",
        "roundrobin",
    ]
    with _proxy(PRODUCTION_STACK, words, "--static-backends") as system:
        yield system


@contextmanager
def mock_worker() -> Iterator[Server]:
    """Run one mock worker."""
    port = free_port()
    argv = [sys.executable, "-m", "benchmarks.mock_worker", "--port", str(port)]
    with running("mock worker", argv, f"http://127.0.0.1:{port}", "/health", {}) as server:
        yield server


@contextmanager
def _proxy(peer: Peer, words: list[str], worker_flag: str) -> Iterator[System]:
    port = free_port()
    with mock_worker() as worker:
        argv = [str(peer.python), *words, "--host", "127.0.0.1", "--port", str(port), worker_flag, worker.url]
        with running(peer.name, argv, f"http://127.0.0.1:{port}", "/health", {}) as server:
            yield System(peer.name, server.url, (server.pid, worker.pid), (worker.pid,))


def _call(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{' '.join(argv[-3:])} takes longer than {INSTALL_S} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise PeerError(
            f"{' '.join(argv[-2:])}: {(said or ['no reason given'])[-1].strip()[:300]}".replace(str(FOLDER), FOLDER.name)
        )


def main() -> None:
    """Install what was asked for, and say what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], help=f"of {', '.join(PEERS)}; default: all")
    failed = False
    for name in parser.parse_args().names or PEERS:
        try:
            print(f"{name} {PEERS[name].install()}: {PEERS[name].python}")
        except PeerError as error:
            failed = True
            print(f"{name}: not installed: {error}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
