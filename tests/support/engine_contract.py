"""What every engine must do; one suite that both engines pass.

A test module inherits `EngineContract` and gives the fixtures `engine` (started, with KV events), `fresh_engine` (the same,
for this test alone: it is stopped), `info` (what `start` returned) and `tokenizer` (the model's). The model must be exact
enough that greedy decoding does not depend on what else is in the batch: with vLLM, ``dtype: float32``. Prompts are never
repeated between tests, so an engine may serve them all. A context of 1,024 tokens and 64 KV blocks of 32 are enough.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest

from components.engine.protocol import Engine, EngineInfo
from components.model.tokenizer import Tokenizer
from components.wire.block_hash import block_hashes, root_hash
from components.wire.errors import InvalidRequestError, WorkerLostError
from components.wire.kv import KvCleared, KvStored
from components.wire.messages import FinishReason, GenerateRequest, PositionLogprobs, Sampling
from components.wire.process import WorkerLoad

_numbers = itertools.count()


def make_request(token_ids: list[int], **fields: Any) -> GenerateRequest:
    """Return a greedy request for 16 tokens; `fields` are those of `Sampling`, or of the request."""
    of_request = {name: fields.pop(name) for name in ("cache_salt", "replayed_tokens", "parsing") if name in fields}
    return GenerateRequest(
        request_id=f"contract-{next(_numbers)}",
        processor="processor-0",
        model="demo",
        token_ids=token_ids,
        sampling=Sampling(**({"max_tokens": 16, "temperature": 0.0, "ignore_eos": True} | fields)),
        deadline_unix_s=time.time() + 60,
        **of_request,
    )


def make_prompt(tokens: int) -> list[int]:
    """Return a prompt nobody has sent before, of tokens that are whole characters in the demo model's vocabulary."""
    rng = random.Random(f"prompt {next(_numbers)}")
    return [rng.randrange(300, 800) for _ in range(tokens)]


@dataclass
class Answer:
    """All output of one request, put together."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int | None = None


async def ask(engine: Engine, request: GenerateRequest) -> Answer:
    """Return the whole answer to `request`, having checked the order of its outputs."""
    answer = Answer()
    async with asyncio.timeout(60):
        async for output in engine.generate(request):
            assert answer.finish_reason is None, "output after the finish reason"
            if output.cached_tokens is not None:
                assert answer.cached_tokens is None, "cached_tokens came twice"
                assert not answer.token_ids, "cached_tokens came late"
                answer.cached_tokens = output.cached_tokens
            assert (output.logprobs is not None) == (request.sampling.logprobs is not None) or not output.token_ids
            answer.token_ids += output.token_ids
            answer.text += output.text
            answer.logprobs += output.logprobs or []
            answer.finish_reason = output.finish_reason
            answer.stop_reason = output.stop_reason
    assert answer.finish_reason is not None
    return answer


async def load_becomes(engine: Engine, expected: Callable[[WorkerLoad], bool]) -> None:
    """Wait until the engine's load is as expected; engines may count a moment later."""
    for _ in range(200):
        if expected(engine.load()):
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"the load stays at {engine.load()}")


def metric(engine: Engine, name: str) -> float:
    """Return the sum of a metric's samples."""
    return sum(s.value for family in engine.metrics() for s in family.samples if s.name == name)


class KvMirror:
    """What somebody knows who hears an engine's KV updates.

    Attributes:
        blocks: held, as far as told.
    """

    def __init__(self, engine: Engine) -> None:
        self.blocks: set[int] = set()
        self._engine = engine

    async def listen(self) -> None:
        """Follow the engine until it ends."""
        async for update in self._engine.kv_updates():
            assert update.complete
            assert update.events > 0
            for change in update.changes:
                if isinstance(change, KvCleared):
                    self.blocks.clear()
                elif isinstance(change, KvStored):
                    assert change.parent is None or change.parent in self.blocks
                    self.blocks.update(change.blocks)
                else:
                    self.blocks.difference_update(change.blocks)

    async def have(self, blocks: list[int]) -> None:
        """Wait until all of `blocks` are held."""
        async with asyncio.timeout(5):
            while not self.blocks.issuperset(blocks):
                await asyncio.sleep(0.01)


class EngineContract:
    """Inherit this in a class called Test…."""

    async def test_greedy_is_deterministic(self, engine: Engine) -> None:
        """The same greedy request gives the same tokens, with and without cached KV."""
        prompt = make_prompt(80)
        first, second = await ask(engine, make_request(prompt)), await ask(engine, make_request(prompt))
        assert first.token_ids == second.token_ids
        assert first.text == second.text
        assert len(first.token_ids) == 16

    async def test_seeded_sampling_is_reproducible(self, engine: Engine) -> None:
        """With a temperature, equal seeds give equal tokens and different seeds different ones."""
        prompt = make_prompt(40)
        tokens = [(await ask(engine, make_request(prompt, temperature=1.0, seed=seed))).token_ids for seed in (7, 7, 8)]
        assert tokens[0] == tokens[1]
        assert tokens[0] != tokens[2]

    @pytest.mark.parametrize("kept", [1, 5, 15])
    async def test_replay_continues_the_answer(self, engine: Engine, tokenizer: Tokenizer, kept: int) -> None:
        """The prompt with the first tokens of its answer goes on with the rest of the same answer and text."""
        prompt = make_prompt(70)
        whole = await ask(engine, make_request(prompt))
        replay = make_request(prompt + whole.token_ids[:kept], max_tokens=16 - kept, replayed_tokens=kept)
        rest = await ask(engine, replay)
        assert rest.token_ids == whole.token_ids[kept:]
        known = tokenizer.decode(whole.token_ids[:kept])
        if not known.endswith("\ufffd"):
            assert known + rest.text == whole.text

    async def test_ends_at_max_tokens(self, engine: Engine) -> None:
        """`max_tokens` tokens come, then the finish reason says length."""
        for max_tokens in (1, 4, 33):
            answer = await ask(engine, make_request(make_prompt(20), max_tokens=max_tokens))
            assert len(answer.token_ids) == max_tokens
            assert answer.finish_reason is FinishReason.LENGTH
            assert answer.stop_reason is None

    async def test_ends_at_the_context_length(self, engine: Engine, info: EngineInfo) -> None:
        """A prompt that leaves room for three tokens gets three."""
        prompt = make_prompt(info.max_model_len - 3)
        answer = await ask(engine, make_request(prompt, max_tokens=10))
        assert len(answer.token_ids) == 3
        assert answer.finish_reason is FinishReason.LENGTH

    async def test_text_is_the_tokens_text(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """The pieces of text add up to the decoded tokens; a last incomplete character may be missing."""
        answer = await ask(engine, make_request(make_prompt(30), max_tokens=64))
        assert answer.text.rstrip("\ufffd") == tokenizer.decode(answer.token_ids).rstrip("\ufffd")

    async def test_stop_string(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """The text ends before a stop string, also one across tokens, and the string is named as the reason."""
        prompt = make_prompt(40)
        whole = await ask(engine, make_request(prompt))
        boundary = len(tokenizer.decode(whole.token_ids[:8]))
        stop = whole.text[boundary - 1 : boundary + 2]
        answer = await ask(engine, make_request(prompt, stop=("never said", stop)))
        assert answer.text == whole.text[: whole.text.index(stop)]
        assert answer.finish_reason is FinishReason.STOP
        assert answer.stop_reason == stop
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]

    async def test_stop_string_included_when_asked_for(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """With `include_stop_str_in_output` the text ends with the stop string."""
        prompt = make_prompt(40)
        whole = await ask(engine, make_request(prompt))
        boundary = len(tokenizer.decode(whole.token_ids[:8]))
        stop = whole.text[boundary - 1 : boundary + 2]
        answer = await ask(engine, make_request(prompt, stop=(stop,), include_stop_str_in_output=True))
        assert answer.text == whole.text[: whole.text.index(stop) + len(stop)]

    async def test_stop_string_that_does_not_come(self, engine: Engine) -> None:
        """Text held back for a stop string comes in the end."""
        prompt = make_prompt(40)
        whole = await ask(engine, make_request(prompt))
        answer = await ask(engine, make_request(prompt, stop=("this is never said",)))
        assert answer.text == whole.text
        assert answer.finish_reason is FinishReason.LENGTH

    async def test_stop_token(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """A stop token ends the answer; it is among the tokens and not in the text."""
        prompt = make_prompt(40)
        whole = await ask(engine, make_request(prompt))
        stop = whole.token_ids[6]
        expected = whole.token_ids[: whole.token_ids.index(stop) + 1]
        answer = await ask(engine, make_request(prompt, stop_token_ids=(stop,)))
        assert answer.token_ids == expected
        assert answer.text == tokenizer.decode(expected[:-1])
        assert answer.finish_reason is FinishReason.STOP
        assert answer.stop_reason == stop

    async def test_min_tokens(self, engine: Engine) -> None:
        """A stop token does not come before `min_tokens`."""
        prompt = make_prompt(40)
        whole = await ask(engine, make_request(prompt))
        answer = await ask(engine, make_request(prompt, stop_token_ids=(whole.token_ids[2],), min_tokens=8))
        assert len(answer.token_ids) >= 8
        assert whole.token_ids[2] not in answer.token_ids[:7]

    async def test_logit_bias(self, engine: Engine) -> None:
        """A bias of 100 makes a token certain."""
        answer = await ask(engine, make_request(make_prompt(40), logit_bias={300: 100.0}, max_tokens=4))
        assert answer.token_ids == [300] * 4

    async def test_allowed_token_ids(self, engine: Engine) -> None:
        """Only allowed tokens come."""
        answer = await ask(engine, make_request(make_prompt(40), allowed_token_ids=(300, 301, 302)))
        assert set(answer.token_ids) <= {300, 301, 302}

    async def test_logprobs(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """One entry a token: the chosen one, then as many as asked for, best first; greedy chooses the best."""
        answer = await ask(engine, make_request(make_prompt(40), logprobs=3))
        assert [position.chosen.token_id for position in answer.logprobs] == answer.token_ids
        for position in answer.logprobs:
            values = [entry.logprob for entry in position.top]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert values[0] <= 0
            assert [entry.rank for entry in position.top] == [1, 2, 3]
            assert position.chosen == position.top[0]
            assert position.chosen.token == tokenizer.token_text(position.chosen.token_id)

    async def test_logprobs_of_the_chosen_token_only(self, engine: Engine) -> None:
        """`logprobs` 0 reports the chosen token and no others."""
        answer = await ask(engine, make_request(make_prompt(40), logprobs=0))
        assert [position.chosen.token_id for position in answer.logprobs] == answer.token_ids
        assert all(position.top == () for position in answer.logprobs)

    async def test_cached_tokens(self, engine: Engine, info: EngineInfo) -> None:
        """A repeated prompt reuses all full blocks but never its last token; the engine's own counter agrees."""
        prompt = make_prompt(3 * info.block_size)
        first = await ask(engine, make_request(prompt))
        hits = metric(engine, "vllm:prefix_cache_hits_total")
        second = await ask(engine, make_request(prompt))
        assert first.cached_tokens == 0
        assert second.cached_tokens == 2 * info.block_size
        assert metric(engine, "vllm:prefix_cache_hits_total") - hits == second.cached_tokens

    async def test_cache_salt_separates(self, engine: Engine, info: EngineInfo) -> None:
        """KV is reused within a salt, never across, and the text is the same."""
        prompt = make_prompt(3 * info.block_size + 1)
        answers = [await ask(engine, make_request(prompt, cache_salt=salt)) for salt in (None, "a", "a", "b")]
        assert [answer.cached_tokens for answer in answers] == [0, 0, 3 * info.block_size, 0]
        assert len({tuple(answer.token_ids) for answer in answers}) == 1

    async def test_kv_updates(self, fresh_engine: Engine, info: EngineInfo) -> None:
        """What an engine tells of its KV is what it reuses: blocks of prompt and answer, chained, salts apart."""
        size, held = info.block_size, KvMirror(fresh_engine)
        listening = asyncio.create_task(held.listen())
        prompt = make_prompt(5 * size + 3)
        for salt, cut in ((None, 0), (None, 3 * size), ("a", 0), ("a", 5 * size), (None, 5 * size + 3), ("b", 0)):
            asked = prompt[:cut] + make_prompt(2 * size + 1) if cut < len(prompt) else prompt
            known = block_hashes(asked, size, root_hash("demo", None, salt))
            expected = size * next((n for n, block in enumerate(known) if block not in held.blocks), len(known))
            answer = await ask(fresh_engine, make_request(asked, cache_salt=salt, max_tokens=2 * size))
            assert answer.cached_tokens == expected
            if cut == 0:
                prompt = asked
            tokens = (asked + answer.token_ids)[:-1]
            await held.have(block_hashes(tokens, size, root_hash("demo", None, salt)))
        await fresh_engine.stop()
        await asyncio.wait_for(listening, 2)

    async def test_closing_aborts(self, engine: Engine) -> None:
        """A client that goes away frees its place and its KV."""
        async with aclosing(engine.generate(make_request(make_prompt(40), max_tokens=900))) as outputs:  # type: ignore[type-var]
            async for _ in outputs:
                break
            assert engine.load().running_requests == 1
        await load_becomes(engine, lambda load: load.running_requests == load.waiting_requests == 0 and load.kv_usage == 0)

    async def test_many_at_once(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """Requests of many lengths run together, and each gets its own answer."""
        requests = [make_request(make_prompt(10 + 7 * i), max_tokens=4 + i % 20) for i in range(48)]
        answers = await asyncio.gather(*(ask(engine, request) for request in requests))
        for request, answer in zip(requests, answers, strict=True):
            assert len(answer.token_ids) == request.sampling.max_tokens
            assert answer.text.rstrip("\ufffd") == tokenizer.decode(answer.token_ids).rstrip("\ufffd")
        await load_becomes(engine, lambda load: load.running_requests == load.waiting_requests == 0)

    async def test_load_adds_up(self, engine: Engine) -> None:
        """The counters grow by exactly what was asked and answered."""
        await load_becomes(engine, lambda load: load.running_requests == load.waiting_requests == 0)
        before, prompt = engine.load(), make_prompt(100)
        answers = [await ask(engine, make_request(prompt)) for _ in range(3)]
        cached = sum(answer.cached_tokens or 0 for answer in answers)
        await load_becomes(engine, lambda load: load.output_tokens - before.output_tokens == 3 * 16)
        await load_becomes(engine, lambda load: load.prompt_tokens - before.prompt_tokens == 3 * 100)
        await load_becomes(engine, lambda load: load.cached_tokens - before.cached_tokens == cached)

    async def test_prompt_that_does_not_fit(self, engine: Engine, info: EngineInfo) -> None:
        """A prompt that leaves no room for output is refused, and the text has both numbers."""
        with pytest.raises(InvalidRequestError) as refused:
            await ask(engine, make_request(make_prompt(info.max_model_len)))
        assert str(info.max_model_len) in refused.value.message

    async def test_empty_prompt(self, engine: Engine) -> None:
        """A prompt without tokens is refused."""
        with pytest.raises(InvalidRequestError):
            await ask(engine, make_request([]))

    @pytest.mark.parametrize("token_id", [1 << 20, -1])
    async def test_token_out_of_vocabulary(self, engine: Engine, token_id: int) -> None:
        """A token id the model does not have is refused."""
        with pytest.raises(InvalidRequestError):
            await ask(engine, make_request([20, 21, token_id]))

    async def test_goes_on_after_refusals(self, engine: Engine) -> None:
        """A refused request leaves nothing behind."""
        with pytest.raises(InvalidRequestError):
            await ask(engine, make_request([1 << 20]))
        assert len((await ask(engine, make_request(make_prompt(20)))).token_ids) == 16
        await load_becomes(engine, lambda load: load.running_requests == load.waiting_requests == 0)

    async def test_stop_ends_what_runs(self, fresh_engine: Engine) -> None:
        """Stopping, also twice, ends running requests and refuses new ones with `WorkerLostError`."""
        running = asyncio.create_task(ask(fresh_engine, make_request(make_prompt(20), max_tokens=900)))
        await load_becomes(fresh_engine, lambda load: load.output_tokens > 0)
        await fresh_engine.stop()
        await fresh_engine.stop()
        with pytest.raises(WorkerLostError):
            await running
        with pytest.raises(WorkerLostError):
            await ask(fresh_engine, make_request(make_prompt(20)))
