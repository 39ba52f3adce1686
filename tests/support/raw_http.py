"""HTTP as no client library would write it."""

import asyncio


async def converse(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send `parts`, with pauses between, to `port` and return everything until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = asyncio.ensure_future(reader.read())
    try:
        for part in parts:
            if received.done():
                break
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        async with asyncio.timeout(15):
            return await received
    except ConnectionError:
        return await received if received.done() and received.exception() is None else b""
    finally:
        received.cancel()
        writer.close()
