"""A real `lmcache server` with a real `lmcache coordinator`, and an engine's storing side: LMCache's own client.

The client is a process of its own (`python -m tests.support.lmcache_fleet PORT`), because LMCache imports torch.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from components.engine.lmcache_config import coordinator_arguments, server_arguments
from components.graph.schema import LMCache
from components.lmcache.contents import Contents, Events
from components.lmcache.relay import Relay
from tests.support.edge import free_port

CHUNK = 64
MODEL = "/models/demo"
_START_TIMEOUT_S = 60.0


class Fleet:
    """Starts and ends its processes.

    Attributes:
        settings: as a graph has them.
        relay: between server and coordinator, as a graph has it; None without.
        held: of the chunks that the relay heard of, which can be loaded.
    """

    def __init__(self, checkpoint: Path | None, *, relayed: bool, **changes: Any) -> None:
        self.checkpoint = checkpoint
        self.held: set[int] = set()
        self._contents = Contents()
        ports = {name: free_port() for name in ("port", "http_port", "coordinator_port")}
        self.settings = LMCache(chunk_tokens=CHUNK, l1_gb=0.002, **ports, **changes)
        self.processes: dict[str, Process] = {}
        self.relay = Relay(self.coordinator_url, self._hear) if relayed else None

    async def _hear(self, events: Events) -> None:
        change = self._contents.apply(events.batches)
        self.held = (self.held | set(change.held)) - set(change.gone)

    @property
    def coordinator_url(self) -> str:
        """Where the coordinator is."""
        return f"http://127.0.0.1:{self.settings.coordinator_port}"

    async def start_server(self) -> None:
        """Start the server, called ``kv``, as a graph on a CPU does."""
        url = self.relay.url if self.relay else self.coordinator_url
        words = server_arguments(self.settings, "kv", url, on_cpu=True, can_silence_events=True)
        await self._start("server", [*words, "--prometheus-port", str(free_port())], self.settings.http_port)

    async def start_coordinator(self) -> None:
        """Start the coordinator."""
        await self._start(
            "coordinator", coordinator_arguments(self.settings, self.checkpoint), self.settings.coordinator_port
        )

    async def start_engine(self) -> None:
        """Register an engine of two blocks a chunk."""
        environment = {**os.environ, "LMCACHE_LOG_LEVEL": "ERROR"}
        words = [sys.executable, "-m", "tests.support.lmcache_fleet", str(self.settings.port)]
        self.processes["engine"] = await asyncio.create_subprocess_exec(
            *words, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment
        )
        await self._engine({"do": "register"})

    async def store(self, tokens: list[int]) -> None:
        """Store the full chunks of a prompt."""
        await self._engine({"do": "store", "tokens": tokens})

    async def readable(self, tokens: list[int]) -> int:
        """Return how many tokens an engine would load."""
        return CHUNK * int(await self._engine({"do": "lookup", "tokens": tokens}))

    async def names(self, tokens: list[int]) -> list[int]:
        """Return what workers believe the server calls a prompt's chunks."""
        found: list[int] = await self._engine({"do": "names", "tokens": tokens})
        return found

    async def _engine(self, command: dict[str, Any]) -> Any:
        process = self.processes["engine"]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(_START_TIMEOUT_S):
            while line := await process.stdout.readline():
                if line.startswith(b"{"):
                    return json.loads(line)["answer"]
        raise AssertionError("the engine has ended")

    async def _start(self, name: str, words: list[str], port: int) -> None:
        lmcache = str(Path(sys.executable).with_name("lmcache"))
        environment = {**os.environ, "LMCACHE_TRACK_USAGE": "false", "LMCACHE_LOG_LEVEL": "ERROR"}
        process = await asyncio.create_subprocess_exec(lmcache, *words, stdout=DEVNULL, stderr=DEVNULL, env=environment)
        self.processes[name] = process
        url = f"http://127.0.0.1:{port}/{'healthcheck' if name == 'server' else 'healthz'}"
        async with asyncio.timeout(_START_TIMEOUT_S), aiohttp.ClientSession() as http:
            while True:
                assert process.returncode is None, f"the {name} has ended"
                try:
                    async with http.get(url) as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)

    def freeze(self, name: str) -> None:
        """Stop a process where it stands."""
        self.processes[name].send_signal(signal.SIGSTOP)

    async def kill(self, name: str) -> None:
        """End a process at once."""
        process = self.processes.pop(name)
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def fleet(checkpoint: Path | None = None, *, relayed: bool = False, **changes: Any) -> AsyncIterator[Fleet]:
    """Run a coordinator, a server and an engine; with a file for it, the coordinator keeps there what it knows."""
    running = Fleet(checkpoint, relayed=relayed, **changes)
    delivering: asyncio.Task[None] | None = None
    try:
        if running.relay:
            await running.relay.open()
            delivering = asyncio.create_task(running.relay.run())
        await asyncio.gather(running.start_coordinator(), running.start_server())
        await running.start_engine()
        yield running
    finally:
        for name in list(running.processes):
            await running.kill(name)
        if running.relay and delivering:
            delivering.cancel()
            await running.relay.close()


class _Engine:
    """An engine's side of a server: registers one layer of KV, stores and looks up."""

    def __init__(self, port: int) -> None:
        from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

        self._client = RequestClientFactory.create(f"tcp://127.0.0.1:{port}")
        self._count = 0

    def _key(self, tokens: list[int], worker_id: int | None) -> Any:
        from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey

        self._count += 1
        return IPCCacheServerKey(
            model_name=MODEL,
            world_size=1,
            worker_id=worker_id,
            token_ids=tuple(tokens),
            start=0,
            end=len(tokens) // CHUNK * CHUNK,
            request_id=f"test-{self._count}",
            num_kv_readers=1,
        )

    def register(self) -> None:
        from lmcache.v1.multiprocess.custom_types import RegisterEngineDrivenContextPayload

        payload = RegisterEngineDrivenContextPayload(
            instance_id=os.getpid(),
            model_name=MODEL,
            world_size=1,
            block_size=CHUNK // 2,
            num_layers=1,
            hidden_dim_size=8,
            dtype_str="float32",
            use_mla=True,
        )
        self._client.register_kv_cache_engine_driven_context(payload).result(timeout=10)

    def store(self, tokens: list[int]) -> None:
        import pickle

        import torch

        key = self._key(tokens, 0)
        self._client.prepare_store(key, os.getpid()).result(timeout=10)
        chunks = [torch.zeros(1, CHUNK, 8) for _ in range(len(tokens) // CHUNK)]
        stored = self._client.commit_store(key, os.getpid(), pickle.dumps(chunks)).result(timeout=10)
        assert stored

    def lookup(self, tokens: list[int]) -> int:
        key = self._key(tokens, None)
        self._client.lookup(key, 1).result(timeout=10)
        found = self._client.wait_prefetch_status(key.request_id, 5.0).result(timeout=10) or 0
        if found:
            self._client.free_lookup_locks(replace(key, end=found * CHUNK), 1).result(timeout=10)
        self._client.end_session(key.request_id).result(timeout=10)
        return int(found)

    def names(self, tokens: list[int]) -> list[int]:
        from components.engine.lmcache_names import ChunkNames

        return ChunkNames(LMCache(chunk_tokens=CHUNK)).of(tokens)


def main() -> None:
    """Take commands until the input ends."""
    engine = _Engine(int(sys.argv[1]))
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(engine, command.pop("do"))(**command)
        sys.stdout.write("\n" + json.dumps({"answer": answer}) + "\n")
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
