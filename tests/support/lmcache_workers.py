"""A process with in-process LMCache workers as engines have them, around an engine of which only the keys exist.

Worker, reports, full sync and token hashing are LMCache's own code. Told what to do by JSON lines on its standard input.
Run as ``python -m tests.support.lmcache_workers``; `WorkerProcess` is the other end.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

LOCATION = "LocalCPUBackend"
_TIMEOUT_S = 60.0


class WorkerProcess:
    """The test's end."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def do(self, what: str, **arguments: Any) -> Any:
        """Have the process do something, and return what it says."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        async with asyncio.timeout(_TIMEOUT_S):
            await self._process.stdin.drain()
            return await self._answer()

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if line.startswith(b"{"):  # LMCache writes there, too
                return json.loads(line)["answer"]
        raise AssertionError("the workers' process has ended")

    def freeze(self) -> None:
        """Stop the process where it stands."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """End it at once."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def worker_process(
    seed: str | None = "0", *, vllm: bool = False, variables: dict[str, str] | None = None
) -> AsyncIterator[WorkerProcess]:
    """Run a process for workers, with more environment variables; without vLLM, chains of hashes begin with 0."""
    environment = {
        **os.environ,
        "LMCACHE_TRACK_USAGE": "false",
        "LMCACHE_LOG_LEVEL": "ERROR",
        "WITHOUT_VLLM": "" if vllm else "1",
    }
    environment |= variables or {}
    environment.pop("PYTHONHASHSEED", None)
    if seed is not None:
        environment["PYTHONHASHSEED"] = seed
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.lmcache_workers", stdin=PIPE, stdout=PIPE, env=environment
    )
    workers = WorkerProcess(process)
    try:
        await workers.do("hello")
        yield workers
    finally:
        await workers.kill()


class _Engine:
    """What `LMCacheWorker` asks of its engine: keys, hashed by LMCache's own token database."""

    def __init__(self, config: Any) -> None:
        from lmcache.v1.token_database import ChunkedTokenDatabase

        self.tokens = ChunkedTokenDatabase(config)
        self.keys: dict[int, int] = {}
        self.pinned: set[int] = set()
        self.error_code = 0
        self.frozen: list[bool] = []
        backend = SimpleNamespace(get_keys=lambda: [SimpleNamespace(chunk_hash=key) for key in self.keys])
        backend_type = type("Backend", (), {"get_keys": lambda _: backend.get_keys(), "__str__": lambda _: LOCATION})
        self.storage_manager = SimpleNamespace(local_cpu_backend=backend_type())
        self.sender: Any = None

    def chunks(self, tokens: list[int]) -> dict[int, int]:
        return {key: end - start for start, end, key in self.tokens.process_tokens(tokens, make_key=False)}

    def store(self, tokens: list[int]) -> int:
        from lmcache.v1.cache_controller.message import OpType

        new = {key: size for key, size in self.chunks(tokens).items() if key not in self.keys}
        self.keys |= new
        for key in new:
            self.sender.add_kv_op(op_type=OpType.ADMIT, key=key)
        return sum(new.values())

    def evict(self, keys: list[int]) -> int:
        from lmcache.v1.cache_controller.message import OpType

        gone = [key for key in keys if key in self.keys and key not in self.pinned]
        for key in gone:
            self.sender.add_kv_op(op_type=OpType.EVICT, key=key)
        return sum(self.keys.pop(key) for key in gone)

    # What the controller's commands come to:
    def clear(self, locations: list[str]) -> int:
        return self.evict(list(self.keys)) if locations == [LOCATION] else 0

    def lookup(self, tokens: list[int], search_range: list[str], lookup_id: str, pin: bool) -> int:
        found = 0
        for key, size in self.chunks(tokens).items():
            if key not in self.keys or search_range != [LOCATION]:
                break
            found += size
            if pin:
                self.pinned.add(key)
        return found

    def compress(self, tokens: list[int], method: str, location: str, event_id: str) -> int:
        if method != "cachegen":
            raise ValueError(f"unknown method {method}")
        return len(tokens or [])

    decompress = compress

    def move(self, tokens: list[int], old_position: str, new_position: Any, event_id: str, do_copy: bool) -> int:
        return len(tokens or [])

    def health(self) -> int:
        return self.error_code

    def freeze(self, enabled: bool) -> None:
        self.frozen.append(enabled)


class _Host:
    """The child's end: the workers by instance and rank."""

    def __init__(self) -> None:
        self.workers: dict[tuple[str, int], Any] = {}
        self.engines: dict[tuple[str, int], _Engine] = {}

    def hello(self) -> str:
        import lmcache.v1.cache_controller.worker
        import lmcache.v1.token_database  # noqa: F401

        return "hello"

    def start(self, rank: int = 0, ranks: int = 1, **settings: Any) -> None:
        """Begin a worker as an engine does, with these settings of LMCache's YAML."""
        import torch
        from lmcache.v1.cache_controller.worker import LMCacheWorker
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.storage_backend.batched_message_sender import BatchedMessageSender

        config = LMCacheEngineConfig.from_dict(settings)
        config.validate()
        metadata = LMCacheMetadata(
            model_name="m",
            world_size=ranks,
            local_world_size=ranks,
            worker_id=rank,
            local_worker_id=rank,
            kv_dtype=torch.bfloat16,
            kv_shape=(1, 2, 256, 1, 8),
        )
        engine = _Engine(config)
        worker = LMCacheWorker(config, metadata, engine)
        engine.sender = BatchedMessageSender(metadata, config, LOCATION, worker)
        self.workers[config.lmcache_instance_id, rank] = worker
        self.engines[config.lmcache_instance_id, rank] = engine

    def load(self, file: str) -> dict[str, Any]:
        """Load a YAML file as an engine does."""
        from lmcache.v1.config import LMCacheEngineConfig

        config = LMCacheEngineConfig.from_file(file)
        config.update_config_from_env()
        config.validate()
        names = ("chunk_size", "enable_controller", "controller_pull_url", "controller_reply_url", "lmcache_worker_ports")
        names += ("lmcache_worker_heartbeat_time",)
        return {name: getattr(config, name) for name in (*names, "lmcache_instance_id")}

    def store(self, instance: str, tokens: list[int], rank: int = 0) -> int:
        return self.engines[instance, rank].store(tokens)

    def evict(self, instance: str, tokens: list[int], rank: int = 0) -> int:
        engine = self.engines[instance, rank]
        return engine.evict(list(engine.chunks(tokens)))

    def unwell(self, instance: str, code: int, rank: int = 0) -> None:
        self.engines[instance, rank].error_code = code

    def lose(self, instance: str, count: int, rank: int = 0) -> None:
        """Lose reports, as a network does."""
        for _ in range(count):
            self.engines[instance, rank].sender._get_next_sequence_number()

    def frozen(self, instance: str, rank: int = 0) -> list[bool]:
        return self.engines[instance, rank].frozen

    def leave(self, instance: str, rank: int = 0) -> None:
        """Deregister, as an engine that ends does."""
        self.workers[instance, rank].deregister()


def main() -> None:
    """Take commands until the input ends."""
    if os.environ.get("WITHOUT_VLLM"):
        sys.modules["vllm"] = None  # type: ignore[assignment]
    host = _Host()
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(host, command.pop("do"))(**command)
        sys.stdout.write("\n" + json.dumps({"answer": answer}) + "\n")
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
