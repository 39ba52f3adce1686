"""A warm child with a real vLLM engine: says one line of JSON once it has answered a request, and stays."""

import asyncio
import json
import os
import sys

import psutil

from components.engine.vllm import VllmEngine
from components.graph import schema
from tests.support.engine_contract import ask, make_prompt, make_request


async def main() -> None:
    """Start, answer, tell, stay."""
    engine = VllmEngine("demo", "demo", schema.VllmEngine(args={"max_model_len": 1024}, kv_cache_gb=0.25), 32)
    await engine.start(lambda _: None)
    answer = await ask(engine, make_request(make_prompt(40)))
    group = [process for process in psutil.process_iter() if _group(process) == psutil.Process().pid]
    told = {
        "tokens": len(answer.token_ids),
        "processes": [process.pid for process in group],
        "cores": [process.cpu_affinity() for process in group],
    }
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    await engine.failed()


def _group(process: psutil.Process) -> int | None:
    """Return the process group of `process`, while it lives."""
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


if __name__ == "__main__":
    asyncio.run(main())
