"""The simulated engine keeps the engine contract, in real time, and fails on demand."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from components.engine.protocol import EngineInfo, EngineStartError
from components.engine.sim import SimEngine
from components.graph import schema
from components.model.folder import model_folder
from components.model.tokenizer import Tokenizer
from components.wire.errors import ContextLengthExceededError, InvalidRequestError, WorkerLostError
from components.wire.messages import FinishReason, OutputParsing, StructuredOutputs
from tests.support.engine_contract import EngineContract, ask, load_becomes, make_prompt, make_request

FAST = schema.SimEngine(speed=20.0, max_model_len=1024, kv_blocks=256)


async def started(settings: schema.SimEngine = FAST) -> SimEngine:
    """Return a started engine."""
    engine = SimEngine("demo", settings, 32, kv_events=True)
    await engine.start(lambda _: None)
    return engine


@pytest.fixture
async def engine() -> AsyncIterator[SimEngine]:
    """A started engine, 20 times as fast as an H200."""
    engine = await started()
    yield engine
    await engine.stop()


@pytest.fixture
async def fresh_engine(engine: SimEngine) -> SimEngine:
    """Every test has an engine of its own."""
    return engine


@pytest.fixture
def info() -> EngineInfo:
    """What `start` returns."""
    return EngineInfo("sim", max_model_len=1024, block_size=32, kv_blocks=256)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The demo model's tokenizer."""
    return Tokenizer(model_folder("demo"))


class TestSimEngine(EngineContract):
    """The contract."""


async def test_info() -> None:
    """`start` tells what the settings say."""
    engine = SimEngine("demo", FAST, 32)
    told: list[str] = []
    info = await engine.start(told.append)
    await engine.stop()
    assert info == EngineInfo("sim", max_model_len=1024, block_size=32, kv_blocks=256)
    assert told == ["loading the tokenizer"]


async def test_replay_on_another_worker(engine: SimEngine) -> None:
    """Another engine, with another block size and other traffic before, goes on with the same answer."""
    other = SimEngine("demo", FAST, 16)
    await other.start(lambda _: None)
    await ask(other, make_request(make_prompt(50)))
    prompt = make_prompt(50)
    sampling = {"temperature": 0.7, "seed": 3}
    whole = await ask(engine, make_request(prompt, max_tokens=40, **sampling))
    rest = await ask(other, make_request(prompt + whole.token_ids[:13], max_tokens=27, replayed_tokens=13, **sampling))
    await other.stop()
    assert rest.token_ids == whole.token_ids[13:]


async def test_a_replays_text_begins_after_the_replayed_tokens(engine: SimEngine, tokenizer: Tokenizer) -> None:
    """They are prompt, as they are to vLLM; what was held back of their text is the processor's business."""
    prompt = make_prompt(50)
    whole = await ask(engine, make_request(prompt, max_tokens=24))
    known = tokenizer.decode(whole.token_ids[:10])
    stop = whole.text[len(known) - 3 : len(known) + 3]
    rest = await ask(engine, make_request(prompt + whole.token_ids[:10], max_tokens=14, replayed_tokens=10, stop=(stop,)))
    assert known + rest.text == whole.text
    assert rest.finish_reason is FinishReason.LENGTH


async def test_echo_says_the_prompt_and_ends(tokenizer: Tokenizer) -> None:
    """With `output: echo` the answer is the prompt without special tokens, characters of several bytes whole."""
    engine = await started(schema.SimEngine(speed=20.0, output="echo"))
    text = "Grüße aus 東京 😀, twice."
    prompt = tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>")
    answer = await ask(engine, make_request(prompt, max_tokens=100, ignore_eos=False))
    assert answer.text == f"user\n{text}"
    assert answer.finish_reason is FinishReason.STOP
    assert answer.token_ids[-1] == tokenizer.eos_ids[0]
    rest = await ask(
        engine,
        make_request(prompt + answer.token_ids[:9], max_tokens=91, ignore_eos=False, replayed_tokens=9),
    )
    assert rest.token_ids == answer.token_ids[9:]
    again = await ask(engine, make_request(prompt, max_tokens=100))
    assert len(again.token_ids) == 100
    await engine.stop()


async def test_text_never_holds_half_a_character(tokenizer: Tokenizer) -> None:
    """Each piece of a stream is whole characters."""
    engine = await started(schema.SimEngine(speed=20.0, output="echo"))
    text = "東京 😀 ü" * 5
    pieces = [
        output.text
        async for output in engine.generate(make_request(tokenizer.encode(text), max_tokens=200, ignore_eos=False))
    ]
    await engine.stop()
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": StructuredOutputs(json_object=True)}, "response_format"),
        ({"bad_words": ("river",)}, "bad_words"),
        ({"parsing": OutputParsing("[]")}, "tools"),
        ({"stop_token_ids": (1 << 20,)}, "stop_token_ids"),
        ({"logit_bias": {1 << 20: 1.0}}, "logit_bias"),
    ],
)
async def test_refuses_what_it_cannot_do(engine: SimEngine, fields: dict[str, object], param: str) -> None:
    """A field the simulated engine cannot honour is refused by its name."""
    with pytest.raises(InvalidRequestError) as refused:
        await ask(engine, make_request(make_prompt(10), **fields))
    assert refused.value.param == param


async def test_context_length_has_its_own_error(engine: SimEngine) -> None:
    """A prompt too long is told apart from other mistakes."""
    with pytest.raises(ContextLengthExceededError, match="1024 tokens"):
        await ask(engine, make_request(make_prompt(1024)))


async def test_more_requests_than_kv_fits(tokenizer: Tokenizer) -> None:
    """With KV for two sequences at most, twelve preempt one another, and every answer is still right."""
    small = await started(schema.SimEngine(speed=50.0, max_model_len=512, kv_blocks=16))
    roomy = await started(schema.SimEngine(speed=50.0, max_model_len=512, kv_blocks=4096))
    prompts = [make_prompt(100) for _ in range(12)]
    tight = await asyncio.gather(*(ask(small, make_request(prompt, max_tokens=200)) for prompt in prompts))
    free = await asyncio.gather(*(ask(roomy, make_request(prompt, max_tokens=200)) for prompt in prompts))
    preemptions = {family.name: family.samples[0].value for family in small.metrics()}["vllm:num_preemptions"]
    assert preemptions > 0
    assert [answer.token_ids for answer in tight] == [answer.token_ids for answer in free]
    assert small.load().kv_usage == 0
    await small.stop()
    await roomy.stop()


async def test_dies_on_demand(engine: SimEngine) -> None:
    """A dead engine ends its requests, says why, and takes no more."""
    running = asyncio.create_task(ask(engine, make_request(make_prompt(20), max_tokens=900)))
    await load_becomes(engine, lambda load: load.output_tokens > 0)
    engine.die("pulled the plug")
    with pytest.raises(WorkerLostError, match="pulled the plug"):
        await running
    assert await asyncio.wait_for(engine.failed(), 1) == "pulled the plug"
    with pytest.raises(WorkerLostError):
        await ask(engine, make_request(make_prompt(20)))


async def test_freezes_on_demand(engine: SimEngine) -> None:
    """A frozen engine says nothing and reports nothing; thawed, it goes on where it was."""
    running = asyncio.create_task(ask(engine, make_request(make_prompt(20), max_tokens=900)))
    await load_becomes(engine, lambda load: load.output_tokens > 0)
    engine.freeze()
    await asyncio.sleep(0.05)
    frozen_at = engine.load().output_tokens
    await asyncio.sleep(0.1)
    assert engine.load().output_tokens == frozen_at
    assert not running.done()
    engine.thaw()
    assert len((await running).token_ids) == 900


async def test_counts_finished_requests(engine: SimEngine) -> None:
    """Finished requests are counted by reason, under vLLM's name."""
    await ask(engine, make_request(make_prompt(20)))
    family = next(family for family in engine.metrics() if family.name == "vllm:request_success")
    assert {s.labels["finished_reason"]: s.value for s in family.samples} == {"stop": 0, "length": 1}


@pytest.mark.parametrize(
    ("model", "settings", "why"),
    [
        ("demo", schema.SimEngine(kv_blocks=10), "kv_blocks"),
        ("demo", schema.SimEngine(timing="no-such-table"), "no-such-table"),
        ("/no/such/folder", schema.SimEngine(), "/no/such/folder"),
    ],
)
async def test_cannot_start(model: str, settings: schema.SimEngine, why: str) -> None:
    """A wrong setting is one clear line."""
    engine = SimEngine(model, settings, 32)
    with pytest.raises(EngineStartError, match=why) as error:
        await engine.start(lambda _: None)
    assert "\n" not in str(error.value)
    await engine.stop()
