"""A scripted engine as a program with vLLM's flags: ``VLLM_COMMAND="python -m tests.support.engine_program"``."""

import argparse
import asyncio
import contextlib
import signal

from tests.support.jobs import ScriptedEngine


async def serve(port: int) -> None:
    """Serve until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with ScriptedEngine(port=port, token_s=0.02):
        await stopping.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_known_args()[0].port))
