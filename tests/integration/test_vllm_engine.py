"""The real vLLM engine keeps the engine contract, refuses what it must, and leaves nothing behind however it ends."""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest
import pytest_asyncio

from components.engine.protocol import EngineInfo, EngineStartError
from components.engine.vllm import VllmEngine
from components.engine.vllm_args import OURS, known_engine_args
from components.graph import schema
from components.model.folder import model_folder
from components.model.tokenizer import Tokenizer
from components.processor.openai import ChatRequest, parse
from components.processor.tools import tooling
from components.wire.errors import InvalidRequestError, WorkerLostError
from components.wire.messages import FinishReason, OutputParsing, StructuredOutputs
from tests.support.engine_contract import EngineContract, ask, load_becomes, make_prompt, make_request

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.filterwarnings("ignore")]

SETTINGS = schema.VllmEngine(
    args={
        "max_model_len": 1024,
        "dtype": "float32",
        "tool_call_parser": "hermes",
        # The random model would put blanks between the tokens of its JSON until its tokens are spent.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    },
    kv_cache_gb=0.25,
)
THINK_END = 895
WEATHER = json.dumps([{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}])


def make_engine(settings: schema.VllmEngine = SETTINGS) -> VllmEngine:
    """Return an engine of the demo model, not started."""
    return VllmEngine("demo", "demo", settings, 32, kv_events=True)


@pytest.fixture(scope="module", autouse=True)
def offline() -> None:
    """Nothing is fetched."""
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine_and_info() -> AsyncIterator[tuple[VllmEngine, EngineInfo]]:
    """One started engine for all tests that leave it as it was."""
    engine = make_engine()
    info = await engine.start(lambda _: None)
    yield engine, info
    await engine.stop()


@pytest.fixture(scope="module")
def engine(engine_and_info: tuple[VllmEngine, EngineInfo]) -> VllmEngine:
    """The started engine."""
    return engine_and_info[0]


@pytest.fixture(scope="module")
def info(engine_and_info: tuple[VllmEngine, EngineInfo]) -> EngineInfo:
    """What `start` returned."""
    return engine_and_info[1]


@pytest_asyncio.fixture(loop_scope="module")
async def fresh_engine() -> AsyncIterator[VllmEngine]:
    """A started engine for one test alone."""
    engine = make_engine()
    await engine.start(lambda _: None)
    yield engine
    await engine.stop()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The demo model's tokenizer."""
    return Tokenizer(model_folder("demo"))


def inner_processes() -> list[psutil.Process]:
    """Return this process's vLLM processes."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline())
    ]


class TestVllmEngine(EngineContract):
    """The contract."""


async def test_info(info: EngineInfo) -> None:
    """`start` tells what the engine is."""
    assert info.version.startswith("vllm ")
    assert (info.max_model_len, info.block_size, info.tool_parser) == (1024, 32, True)
    assert info.kv_blocks > 64


async def test_metrics_are_vllms(engine: VllmEngine) -> None:
    """All metrics are vLLM's, labelled with the served name."""
    families = engine.metrics()
    assert all(family.name.startswith("vllm:") for family in families)
    running = [s for family in families for s in family.samples if s.name == "vllm:num_requests_running"]
    assert [sample.labels["model_name"] for sample in running] == ["demo"]


async def test_json_schema(engine: VllmEngine) -> None:
    """The output is JSON of the schema asked for."""
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    structured = StructuredOutputs(json_schema=json.dumps(schema))
    answer = await ask(
        engine, make_request(make_prompt(20), structured_outputs=structured, ignore_eos=False, max_tokens=256)
    )
    assert json.loads(answer.text)["n"] in {1, 2}
    assert answer.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("structured", "allowed"),
    [(StructuredOutputs(choice=("red", "green")), {"red", "green"}), (StructuredOutputs(regex="(ab|cd)e"), {"abe", "cde"})],
)
async def test_choice_and_regex(engine: VllmEngine, structured: StructuredOutputs, allowed: set[str]) -> None:
    """The output is one of the strings allowed."""
    answer = await ask(engine, make_request(make_prompt(20), structured_outputs=structured, ignore_eos=False))
    assert answer.text in allowed


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": StructuredOutputs(json_schema='{"type": 12}')},
        {"structured_outputs": StructuredOutputs(json_schema="no json")},
        {"structured_outputs": StructuredOutputs(regex="(")},
        {"structured_outputs": StructuredOutputs(grammar="no ::= grammar ::=")},
        {"logprobs": 1000},
        {"logit_bias": {1 << 20: 1.0}},
        {"allowed_token_ids": (1 << 20,)},
        {"stop_token_ids": (1 << 20,), "min_tokens": 2},
        {"top_p": 7.0},
        {"parsing": OutputParsing("12")},
    ],
)
async def test_bad_requests_are_refused(engine: VllmEngine, fields: dict[str, object]) -> None:
    """What vLLM will not do is the client's error in one line, and the engine goes on."""
    with pytest.raises(InvalidRequestError) as refused:
        await ask(engine, make_request(make_prompt(20), **fields))
    assert "\n" not in refused.value.message
    assert len((await ask(engine, make_request(make_prompt(20)))).token_ids) == 16


async def test_tool_call(engine: VllmEngine) -> None:
    """The parser takes a tool call out of the text, and the finish reason says so."""
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    fields = {"structured_outputs": StructuredOutputs(choice=(text,)), "ignore_eos": False, "max_tokens": 100}
    request = make_request(make_prompt(20), parsing=OutputParsing(WEATHER), **fields)
    outputs = [output async for output in engine.generate(request)]
    calls = [call for output in outputs for call in output.tool_calls]
    assert [call.name for call in calls if call.name] == ["get_weather"]
    assert json.loads("".join(call.arguments for call in calls)) == {"city": "Paris"}
    assert "".join(output.text for output in outputs).strip() == ""
    assert outputs[-1].finish_reason is FinishReason.TOOL_CALLS


async def test_a_conversation_reaches_the_parser(engine: VllmEngine) -> None:
    """As the processor hands it over: every kind of message, and an answer of ours sent back."""
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "developer", "content": "Be polite."},
        {"role": "user", "content": "Hello!", "name": "Ann"},
        {"role": "assistant", "content": "Hello.", "refusal": None, "reasoning": "She greets."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "fine"},
    ]
    body = {"messages": messages, "tools": json.loads(WEATHER)}
    parsing = tooling(parse(msgspec.json.encode(body), ChatRequest)).parsing
    assert parsing is not None
    fields = {"structured_outputs": StructuredOutputs(choice=("no tool needed",)), "ignore_eos": False}
    answer = await ask(engine, make_request(make_prompt(20), parsing=parsing, **fields))
    assert answer.text == "no tool needed"


async def test_text_beside_a_tool_parser(engine: VllmEngine) -> None:
    """Text without a tool call comes out as it is."""
    fields = {"structured_outputs": StructuredOutputs(choice=("no tool needed",)), "ignore_eos": False}
    request = make_request(make_prompt(20), parsing=OutputParsing(WEATHER), **fields)
    outputs = [output async for output in engine.generate(request)]
    assert "".join(output.text for output in outputs) == "no tool needed"
    assert outputs[-1].finish_reason is FinishReason.STOP


async def test_cancelled_at_any_moment(engine: VllmEngine) -> None:
    """Requests cancelled before, while and after they are added leave nothing in vLLM."""
    for turns in range(40):
        task = asyncio.create_task(ask(engine, make_request(make_prompt(100), max_tokens=900)))
        for _ in range(turns // 4):
            await asyncio.sleep(0)
        await asyncio.sleep(turns % 4 / 100)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await load_becomes(engine, lambda load: load.running_requests == load.waiting_requests == 0)
    for _ in range(20):  # vLLM's core aborts in its next step, and resets its cache only when no block is in use
        if await engine._opened.llm.reset_prefix_cache():
            return
        await asyncio.sleep(0.05)
    pytest.fail("vLLM's core still holds KV blocks")


async def test_killed_core(fresh_engine: VllmEngine) -> None:
    """When vLLM's core is killed, requests end with `WorkerLostError` and `failed` says why, within a second."""
    running = asyncio.create_task(ask(fresh_engine, make_request(make_prompt(20), max_tokens=900)))
    await load_becomes(fresh_engine, lambda load: load.output_tokens > 0)
    core = max((child for child in psutil.Process().children() if child.children()), key=lambda child: child.create_time())
    core.send_signal(signal.SIGKILL)
    started = time.monotonic()
    async with asyncio.timeout(10):
        assert "EngineCore exited with -9" in await fresh_engine.failed()
        with pytest.raises(WorkerLostError):
            await running
    assert time.monotonic() - started < 5
    with pytest.raises(WorkerLostError):
        await ask(fresh_engine, make_request(make_prompt(20)))


async def test_stopped_while_starting() -> None:
    """An engine stopped while it loads is gone soon, with all its processes."""
    before = set(inner_processes())
    engine = make_engine()
    starting = asyncio.create_task(engine.start(lambda _: None))
    while not set(inner_processes()) - before:
        await asyncio.sleep(0.1)
        assert not starting.done()
    starting.cancel()
    async with asyncio.timeout(20):
        await engine.stop()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.sleep(0.5)
    assert set(inner_processes()) <= before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            {"max_model_length": 5},
            "engine.max_model_length: vLLM has no such engine argument; did you mean `max_model_len`?",
        ),
        ({"block_size": 32}, "engine.block_size: is set for the whole graph, as `kv.block_size`"),
        ({"max_model_len": "long"}, "max_model_len"),
        ({"tool_call_parser": "no such parser"}, "no such parser"),
        ({"reasoning_parser": "no such parser"}, "no such parser"),
    ],
)
async def test_bad_arguments(args: dict[str, object], said: str) -> None:
    """A wrong engine argument is one line that names it."""
    engine = make_engine(schema.VllmEngine(args=args))
    with pytest.raises(EngineStartError) as refused:
        await engine.start(lambda _: None)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    await engine.stop()


async def test_a_model_that_cannot_reason_is_refused_a_reasoning_parser() -> None:
    """Its tokenizer has no tokens around the reasoning; that is known at the start, not at the first request."""
    engine = make_engine(
        schema.VllmEngine(args={"max_model_len": 1024, "reasoning_parser": "deepseek_r1"}, kv_cache_gb=0.25)
    )
    with pytest.raises(EngineStartError, match="think start/end tokens"):
        await engine.start(lambda _: None)
    await engine.stop()


async def test_reasoning(tmp_path: Path) -> None:
    """The parser tells what stands before the end of the reasoning from the answer; what is no chat goes unparsed."""
    args = SETTINGS.args | {
        "tool_call_parser": None,
        "reasoning_parser": "deepseek_r1",
        "structured_outputs_config": {"backend": "xgrammar", "enable_in_reasoning": True},
    }
    model = _thinking_model(tmp_path)
    engine = VllmEngine(str(model), "demo", schema.VllmEngine(args=args, kv_cache_gb=0.25), 32)
    try:
        info = await engine.start(lambda _: None)
        assert (info.tool_parser, info.reasoning_parser) == (False, True)
        fields = {"structured_outputs": StructuredOutputs(choice=("well</think>yes",)), "logit_bias": {THINK_END: 100.0}}
        fields |= {"ignore_eos": False, "max_tokens": 30}
        request = make_request(make_prompt(20), parsing=OutputParsing(), **fields)
        outputs = [output async for output in engine.generate(request)]
        assert "".join(output.reasoning for output in outputs) == "well"
        assert "".join(output.text for output in outputs) == "yes"
        whole = await ask(engine, make_request(make_prompt(20), **fields))
        assert whole.text == "well</think>yes"
    finally:
        await engine.stop()


def _thinking_model(folder: Path) -> Path:
    """Return the demo model with its last two tokens around the reasoning."""
    model = Path(shutil.copytree(model_folder("demo"), folder / "model"))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    names = {number: name for name, number in vocabulary.items()}
    for number, name in ((THINK_END - 1, "<think>"), (THINK_END, "</think>")):
        replaced = names[number]
        del vocabulary[replaced]
        vocabulary[name] = number
        merges = tokenizer["model"]["merges"]
        tokenizer["model"]["merges"] = [merge for merge in merges if "".join(merge) != replaced and replaced not in merge]
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        tokenizer["added_tokens"].append({"id": number, "content": name, **plain})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    return model


async def test_missing_model() -> None:
    """A model that is not there is one line."""
    with pytest.raises(EngineStartError, match="there is no folder /no/such/model"):
        await VllmEngine("/no/such/model", "x", SETTINGS, 32).start(lambda _: None)


def test_known_engine_args_are_vllms() -> None:
    """The names read from vLLM's source are the fields of its class."""
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs

    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs) if not field.name.startswith("_")}
    assert known_engine_args() == fields | OURS
