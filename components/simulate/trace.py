"""Traffic as a list of requests: read from and written to files in Mooncake's format, sped up and cut.

A line is a JSON object: ``timestamp`` in ms, ``input_length`` and ``output_length`` in tokens, and ``hash_ids``, one for
each 512 tokens of the prompt, so that equal beginnings mean equal prefixes (github.com/kvcache-ai/Mooncake). Ours may also
have ``session``. No prompt is in it, and none is needed.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

TRACE_BLOCK_TOKENS = 512
"""Tokens that one hash id stands for; the last one's of a prompt may be fewer."""

_MAX_HASH_ID = (1 << 31) - 1  # what is said gets ids above


class TraceError(Exception):
    """A trace cannot be used; the text says why, and in which line."""


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a trace.

    Attributes:
        timestamp: when it comes, in ms.
        input_length: of its prompt, in tokens.
        output_length: of its answer, in tokens.
        hash_ids: one for each 512 tokens of its prompt; equal beginnings are equal prefixes.
        session: requests of one session prefer one worker, where the policy cares.
    """

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]
    session: str | None = None

    def tokens(self) -> list[int]:
        """Return token ids such that prompts share as many as their hash ids say."""
        tokens: list[int] = []
        for hash_id in self.hash_ids:
            tokens += [hash_id] * TRACE_BLOCK_TOKENS
        del tokens[self.input_length :]
        return tokens


def read_trace(path: Path) -> list[Request]:
    """Return the requests of a trace, in order of time.

    Raises:
        TraceError: there is no such file, or a line of it is wrong.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error
    decoder = msgspec.json.Decoder(Request)
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TraceError(f"{path}, line {number}: {error}") from error
        if mistake := _mistake(request):
            raise TraceError(f"{path}, line {number}: {mistake}")
        requests.append(request)
    if not requests:
        raise TraceError(f"{path}: has no requests")
    return sorted(requests, key=lambda request: request.timestamp)


def _mistake(request: Request) -> str | None:
    """Return what is wrong with a request, if anything."""
    if not 0 <= request.timestamp < float("inf"):
        return f"timestamp: must be a time in ms of at least 0, not {request.timestamp}"
    if request.input_length < 1 or request.output_length < 1:
        return "input_length and output_length: must be at least 1"
    blocks = -(-request.input_length // TRACE_BLOCK_TOKENS)
    if len(request.hash_ids) != blocks:
        each = f"one for each {TRACE_BLOCK_TOKENS} tokens of input_length {request.input_length}"
        return f"hash_ids: must be {blocks}, {each}, not {len(request.hash_ids)}"
    if min(request.hash_ids) < 0 or max(request.hash_ids) > _MAX_HASH_ID:
        return f"hash_ids: must be 0 to {_MAX_HASH_ID}"
    return None


def write_trace(path: Path, requests: Iterable[Request]) -> None:
    """Write a trace."""
    encoder = msgspec.json.Encoder()
    path.write_bytes(b"".join(encoder.encode(request) + b"\n" for request in requests))


def cut(
    requests: Sequence[Request], speed: float = 1.0, seconds: float | None = None, limit: int | None = None
) -> list[Request]:
    """Return the beginning of a trace, `speed` times as fast, starting at 0.

    Args:
        requests: in order of time; at least one.
        speed: 2.0 has the requests come twice as fast.
        seconds: only what comes in the first so many, in the trace's own time.
        limit: at most so many requests.
    """
    start_ms = requests[0].timestamp
    end_ms = float("inf") if seconds is None else start_ms + seconds * 1000
    kept = [request for request in requests if request.timestamp < end_ms][:limit]
    return [msgspec.structs.replace(request, timestamp=(request.timestamp - start_ms) / speed) for request in kept]
