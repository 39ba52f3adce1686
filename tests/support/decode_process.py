"""Components as processes of their own: a decode worker with a simulated engine, or anything else of the graph ``test``."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from components.graph.schema import Nats


@asynccontextmanager
async def component_process(
    nats: Nats, folder: Path, name: str, components: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the process `name` (such as ``decode-0``) of a graph with these `components`, written as YAML."""
    graph = folder / f"{name}.yaml"
    graph.write_text(f"{{model: demo, name: test, nats: '{nats.url}', components: {components}}}")
    module = f"components.{name.rpartition('-')[0]}"
    argv = [sys.executable, "-m", module, "--graph", str(graph), "--name", name]
    with (folder / f"{name}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, env=os.environ, stderr=log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)  # a test may have frozen it
            process.terminate()
        await process.wait()


def decode_process(
    nats: Nats, folder: Path, name: str, speed: float = 50
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run a worker, `speed` times as fast as its timing table says."""
    return component_process(nats, folder, name, f"{{processor: {{}}, decode: {{engine: {{kind: sim, speed: {speed}}}}}}}")
