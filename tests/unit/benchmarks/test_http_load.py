"""The load generator against a real HTTP server."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from benchmarks.http_load import has_text, load
from benchmarks.mock_worker import chat


@pytest.fixture
async def server() -> AsyncIterator[str]:
    """Run the mock worker, and a path-blind refusal for bodies that ask for one."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if b"refuse" in await request.read():
            return web.Response(status=503, body=b"no")
        if b"close" in await request.read():
            assert request.transport is not None
            request.transport.close()
        return await chat(request)

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize("body", [b'{"stream": true}', b'{"stream": false}'])
async def test_it_counts_good_answers(server: str, body: bytes) -> None:
    """Streamed in chunks or whole with a length, over kept connections."""
    found = await load(server, [body], concurrency=3, seconds=0.2)
    assert len(found.ttft_s) >= 3
    assert found.failed == 0
    assert found.rate > 0
    assert all(0 < ttft < 10 for ttft in found.ttft_s)


@pytest.mark.parametrize("bad", [b"refuse", b"close"])
async def test_it_counts_bad_answers_and_goes_on(server: str, bad: bytes) -> None:
    """A refusal is no good answer, a connection that is closed neither; the next request gets another one."""
    found = await load(server, [bad, b'{"stream": true}'], concurrency=1, seconds=0.2)
    assert found.failed >= 1
    assert len(found.ttft_s) >= 1


@pytest.mark.parametrize(
    ("data", "there"),
    [
        (b'{"delta":{"content":"a"}}', True),
        (b'{"delta":{"content":""}}', False),
        (b'{"delta":{"content":""}} {"delta":{"content":"b"}}', True),
        (b'{"delta":{"role":"assistant"}}', False),
        (b'{"delta":{"content":"', False),
    ],
)
def test_text_is_told_from_an_opening(data: bytes, there: bool) -> None:
    """The first token counts, not the event that opens the message."""
    assert has_text(data) is there
