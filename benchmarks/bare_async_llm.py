"""A process that does nothing but serve a few requests through AsyncLLM, and prints its resident memory in bytes."""

import asyncio
import sys

import psutil
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM


async def main() -> None:
    """Serve 64 short requests of the model in the first argument."""
    args = AsyncEngineArgs(model=sys.argv[1], max_model_len=4096, block_size=32, dtype="bfloat16", enforce_eager=True)
    llm = AsyncLLM.from_engine_args(args)
    for i in range(64):
        prompt = {
            "prompt_token_ids": [5 + i, 6, 7, 8] * 25
        }  # a short first prompt kills vLLM 0.32 on AMX machines: docs/log.md
        async for _ in llm.generate(prompt, SamplingParams(max_tokens=16), str(i)):
            pass
    print("RSS", psutil.Process().memory_info().rss)
    llm.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
