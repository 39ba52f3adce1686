"""What a client may ask for, and what becomes of it."""

import json
from typing import Any

import pytest

from components.wire.errors import InvalidRequestError, UnprocessableError
from components.worker_controller.engine_args import command_line, with_defaults
from components.worker_controller.engine_request import EngineRequest, read_request


@pytest.fixture(autouse=True)
def _vllm() -> None:
    """The names of vLLM's arguments come from its source."""
    pytest.importorskip("vllm")


def read(consent: bool = False, **fields: Any) -> EngineRequest:
    """Return what a body of `fields` asks for."""
    return read_request(json.dumps({"engine_uuid": "e", "model": "m", **fields}).encode(), consent=consent)


def test_the_guide_s_defaults() -> None:
    """What is left out has the guide's defaults."""
    args = read().args
    assert (args["dtype"], args["gpu_memory_utilization"]) == ("float16", 0.9)
    assert read().world_size == 1
    assert read(tensor_parallel_size=2, pipeline_parallel_size=3).world_size == 6


def test_nested_form() -> None:
    """``vllm_config`` holds arguments, flat or grouped; what stands beside it counts more."""
    config = {
        "model": "inner",
        "max_num_seqs": 4,
        "cache_config": {"block_size": 64},
        "parallel_config": {"tensor_parallel_size": 2},
    }
    asked = read_request(json.dumps({"engine_uuid": "e", "vllm_config": config}).encode(), consent=False)
    assert asked.model == "inner"
    assert (asked.args["max_num_seqs"], asked.args["block_size"], asked.world_size) == (4, 64, 2)
    assert read(vllm_config=config).model == "m"


def test_a_role_brings_no_defaults() -> None:
    """A graph's own settings count where the request says nothing."""
    asked = read_request(b'{"engine_uuid": "e", "role": "decode", "max_num_seqs": 4}', consent=False)
    assert asked.args == {"max_num_seqs": 4}
    assert asked.world_size == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"engine_uuid": ""},
        {"engine_uuid": "a/b"},
        {"engine_uuid": "a\n"},
        {"engine_uuid": 5},
        {"model": ""},
        {"gpu_memory_utilization": 1.5},
        {"tensor_parallel_size": "two"},
        {"pipeline_parallel_size": 0},
        {"vllm_config": 5},
        {"role": "router"},
        {"no_such_argument": 1},
        {"enforce_eager": "yes"},
        {"data_parallel_size": 2},
        {"worker_cls": "x.Y"},
    ],
)
def test_malformed(fields: dict[str, Any]) -> None:
    """Wrong fields are a 422 that names them."""
    with pytest.raises(UnprocessableError) as caught:
        read(**fields)
    assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000])
def test_no_json_object(body: bytes) -> None:
    """So is what is no JSON object."""
    with pytest.raises(UnprocessableError):
        read_request(body, consent=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"trust_remote_code": True},
        {"worker_extension_cls": "x.Y"},
        {"logits_processors": ["x.Y"]},
        {"load_format": "runai_streamer"},
        {"kv_transfer_config": {"kv_connector_module_path": "x"}},
        {"compilation_config": {"backend": "x.y"}},
        {"vllm_config": {"model_config": {"trust_remote_code": True}}},
    ],
)
def test_what_needs_consent(fields: dict[str, Any]) -> None:
    """What could load code is refused without the owner's consent, and passed on with it."""
    with pytest.raises(InvalidRequestError, match="--trust-remote-code"):
        read(**fields)
    read(consent=True, **fields)


def test_harmless_values_need_none() -> None:
    """Dummy weights load no code; nor does saying no."""
    assert read(load_format="dummy", trust_remote_code=False).args["load_format"] == "dummy"


def test_defaults_on_a_cpu() -> None:
    """On a CPU an engine gets a KV cache of fixed size and does not compile, unless it is told to."""
    assert with_defaults({"seed": 1}, on_cpu=False, kv_cache_bytes=5) == {"seed": 1}
    found = with_defaults({"enforce_eager": False}, on_cpu=True, kv_cache_bytes=5)
    assert found == {"enforce_eager": False, "kv_cache_memory_bytes": 5}


def test_command_line() -> None:
    """Arguments become the words that vLLM's own parser reads; a value that looks like a flag stays a value."""
    args = {"model": "--x", "max_num_seqs": 4, "enforce_eager": True, "enable_prefix_caching": False, "seed": None}
    assert command_line(args) == ["--model=--x", "--max-num-seqs=4", "--enforce-eager", "--no-enable-prefix-caching"]
    assert command_line({"hf_overrides": {"a": 1}}) == ["--hf-overrides", '{"a": 1}']
    assert command_line({"served_model_name": ["a", "b"]}) == ["--served-model-name", "a", "b"]
