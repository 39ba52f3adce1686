"""A stand-in for an engine's OpenAI server: answers at once, always the same; what a proxy is given to route to.

    python -m benchmarks.mock_worker --port 8100

Knows what the routers ask of a worker: health, models, metrics. Its answers are made once, so that it costs little.
"""

import argparse
import json

import uvloop
from aiohttp import web

OUTPUT_TOKENS = 8


def _chunk(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo", "choices": [choice]}
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


EVENTS = [
    _chunk({"role": "assistant", "content": ""}),
    *(_chunk({"content": " word"}) for _ in range(OUTPUT_TOKENS - 1)),
    _chunk({"content": " word"}, "length"),
    b"data: [DONE]\n\n",
]
WHOLE = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": " word" * OUTPUT_TOKENS},
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 900, "completion_tokens": OUTPUT_TOKENS, "total_tokens": 900 + OUTPUT_TOKENS},
    }
).encode()


async def chat(request: web.Request) -> web.StreamResponse:
    """Answer a chat completion, each token an event of its own when it is streamed."""
    if b'"stream": true' not in await request.read():
        return web.Response(body=WHOLE, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in EVENTS:
        await response.write(event)
    return response


async def models(_: web.Request) -> web.Response:
    """List the one model."""
    return web.json_response({"object": "list", "data": [{"id": "demo", "object": "model", "created": 1, "owned_by": "x"}]})


async def well(_: web.Request) -> web.Response:
    """Say that all is well."""
    return web.json_response({"status": "ok"})


async def metrics(_: web.Request) -> web.Response:
    """Answer with what an idle vLLM shows."""
    return web.Response(text="vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0\n")


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    app = web.Application(client_max_size=2**26)
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models), web.get("/metrics", metrics)])
    app.add_routes([web.get(path, well) for path in ("/health", "/get_model_info", "/get_server_info", "/server_info")])
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=asked.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
