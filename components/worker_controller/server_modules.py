"""Imports, when it is imported itself, what vLLM's API server imports only when it is built: a fifth of a second each time.

Found as those of `components.engine.warm_modules` were. One that a vLLM version does not have is left out.
"""

import contextlib
import importlib

_MODULES = (
    "anthropic.api_router",
    "anthropic.serving",
    "generate.api_router",
    "generate.generative_scoring.api_router",
    "generate.generative_scoring.serving",
    "generate.structured_decisions.api_router",
    "mcp.tool_server",
    "openai.chat_completion.api_router",
    "openai.chat_completion.batch_serving",
    "openai.completion.api_router",
    "openai.models.api_router",
    "openai.responses.api_router",
    "openai.responses.serving",
    "scale_out.derender.api_router",
    "scale_out.factories",
    "scale_out.render.api_router",
    "scale_out.token_in_token_out.api_router",
    "serve.elastic_ep.api_router",
    "serve.instrumentator.metrics",
    "serve.instrumentator.offline_docs",
    "serve.lora.api_router",
    "serve.profile.api_router",
    "serve.sagemaker.api_router",
    "serve.tokenize.api_router",
)

for name in _MODULES:
    with contextlib.suppress(Exception):  # they only save time
        importlib.import_module(f"vllm.entrypoints.{name}")
