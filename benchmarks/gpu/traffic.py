"""What is asked: prompts of so many tokens, and whole conversations out of a trace, as text. Pure, but for reading files."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.gpu.load import Request
from components.simulate.trace import TRACE_BLOCK_TOKENS
from components.simulate.trace import Request as Arrival


class Writer:
    """Makes texts of a known number of tokens: words that are one token each.

    Args:
        model: the model folder whose tokenizer counts.
        salt: texts of different salts share no beginning.
    """

    def __init__(self, model: Path, salt: str = "") -> None:
        self._words = single_token_words(model)
        self._salt = salt

    def salted(self, salt: str) -> "Writer":
        """Return one whose texts share no beginning with this one's."""
        other = object.__new__(Writer)
        other._words, other._salt = self._words, salt
        return other

    def text(self, name: str, tokens: int) -> str:
        """Return the text called `name`: always the same one, and a beginning of any longer one of that name."""
        return "".join(random.Random(f"{self._salt}/{name}").choices(self._words, k=tokens))

    def prompt(self, arrival: Arrival, scale: float) -> str:
        """Return a prompt that shares as much with others as its hash ids say, `scale` times as long as recorded."""
        each = block_tokens(scale)
        whole = "".join(self.text(f"block {hash_id}", each) for hash_id in arrival.hash_ids)
        words = whole.split(" ")[1:]
        return "".join(f" {word}" for word in words[: prompt_tokens(arrival, scale)])


def single_token_words(model: Path) -> list[str]:
    """Return words, a space before each, that are one token wherever they stand among others."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    known = sorted(json.loads((model / "tokenizer.json").read_text())["model"]["vocab"])
    words = [f" {entry[1:]}" for entry in known if entry[0] == "Ġ" and entry[1:].isalpha() and entry[1:].isascii()]
    return [word for word in words if len(tokenizer.encode(word, add_special_tokens=False).ids) == 1]


def block_tokens(scale: float) -> int:
    """Return how many tokens one hash id stands for."""
    return max(1, round(TRACE_BLOCK_TOKENS * scale))


def prompt_tokens(arrival: Arrival, scale: float) -> int:
    """Return a prompt's length in tokens."""
    return max(1, min(round(arrival.input_length * scale), len(arrival.hash_ids) * block_tokens(scale)))


def take_sessions(arrivals: Sequence[Arrival], requests: int, longest: int, seed: int = 0) -> list[Arrival]:
    """Return about so many requests as whole conversations, in their order; prompts longer than `longest` are left out.

    A conversation is what shares the second hash id (all of a Mooncake trace share the first, a system prompt).
    Conversations are drawn at random; a larger sample of the same seed holds the smaller ones.
    """
    sessions: dict[int, list[Arrival]] = {}
    for arrival in arrivals:
        if arrival.input_length <= longest:
            sessions.setdefault(arrival.hash_ids[min(1, len(arrival.hash_ids) - 1)], []).append(arrival)
    order = sorted(sessions)
    random.Random(seed).shuffle(order)
    taken: list[Arrival] = []
    for session in order:
        if len(taken) >= requests:
            break
        taken += sessions[session]
    return sorted(taken, key=lambda arrival: arrival.timestamp)


def best_hit_rate(arrivals: Sequence[Arrival]) -> float:
    """Return which share of the prompts' blocks one engine with endless memory would find cached."""
    seen: set[int] = set()
    hits = blocks = 0
    for arrival in arrivals:
        new = next((n for n, hash_id in enumerate(arrival.hash_ids) if hash_id not in seen), len(arrival.hash_ids))
        hits += new
        blocks += len(arrival.hash_ids)
        seen.update(arrival.hash_ids)
    return hits / blocks if blocks else 0.0


def replay(arrivals: Sequence[Arrival], window_s: float, writer: Writer, scale: float, longest_output: int) -> list[Request]:
    """Return the trace's requests, spread over `window_s` as they were over the trace's time."""
    first, last = arrivals[0].timestamp, arrivals[-1].timestamp
    pace = window_s / max(last - first, 1.0)
    return [
        Request(
            (arrival.timestamp - first) * pace,
            writer.prompt(arrival, scale),
            max(2, min(round(arrival.output_length * scale), longest_output)),
        )
        for arrival in arrivals
    ]


def mixed(writer: Writer, window_s: float, short: dict[str, Any], long: dict[str, Any], seed: int = 0) -> list[Request]:
    """Return short and long prompts, each kind arriving at random at its own rate, no two with a common beginning.

    Args:
        writer: of the texts.
        window_s: how long they keep coming.
        short: `rate` a second, `tokens` of the prompt, `output` tokens.
        long: likewise.
        seed: of the moments.
    """
    rng = random.Random(seed)
    requests = []
    for kind, each in (("short", short), ("long", long)):
        moment, number = rng.expovariate(each["rate"]), 0
        while moment < window_s:
            requests.append(Request(moment, writer.text(f"{kind} {number}", each["tokens"]), each["output"], kind))
            moment += rng.expovariate(each["rate"])
            number += 1
    return sorted(requests, key=lambda request: request.due_s)
