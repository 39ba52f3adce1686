"""Which engine arguments a graph may set, found without importing vLLM."""

import subprocess
import sys

import pytest

from components.engine import vllm_args
from components.engine.vllm_args import OURS, known_engine_args, mistaken_arg


def test_known_names() -> None:
    """The names are vLLM's own and ours, when vLLM is installed."""
    pytest.importorskip("vllm")
    known = known_engine_args()
    assert known is not None
    assert {"max_model_len", "dtype", "tensor_parallel_size", "kv_transfer_config", "enable_log_requests"} | OURS <= known


def test_vllm_is_not_imported() -> None:
    """Neither vLLM nor torch is imported to find the names."""
    code = (
        "import sys; from components.engine.vllm_args import known_engine_args; known_engine_args(); "
        "sys.exit(bool({'vllm', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_model_length", "max_model_length: vLLM has no such engine argument; did you mean `max_model_len`?"),
        ("xyzzy", "xyzzy: vLLM has no such engine argument"),
        ("model", "model: is set for the whole graph, as `model`"),
        ("block_size", "block_size: is set for the whole graph, as `kv.block_size`"),
    ],
)
def test_mistakes(name: str, said: str) -> None:
    """A wrong name is one line with a guess, or with where the setting belongs."""
    pytest.importorskip("vllm")
    assert mistaken_arg({"dtype": "bfloat16", name: 1}) == said


def test_what_is_penstock_s_own() -> None:
    """Only where a router or LMCache needs it."""
    pytest.importorskip("vllm")
    args = {"kv_events_config": {"publisher": "zmq"}, "kv_transfer_config": {"kv_connector": "x"}, "data_parallel_size": 2}
    assert mistaken_arg(args) is None
    assert (mistaken_arg(args, lmcache=True) or "").startswith("kv_transfer_config: is penstock's own")
    assert (mistaken_arg(args, kv_events=True) or "").startswith("kv_events_config: is penstock's own")
    del args["kv_events_config"]
    assert (mistaken_arg(args, kv_events=True) or "").startswith("data_parallel_size: must be 1")


def test_right_names() -> None:
    """Right names are no mistake; values of types that only vLLM knows are left to it."""
    assert mistaken_arg({"dtype": 1, "tool_call_parser": "hermes"}) is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_model_len", "abc", "must be a whole number, not 'abc'"),
        ("max_model_len", 4096.5, "must be a whole number, not 4096.5"),
        ("max_num_seqs", True, "must be a whole number, not True"),
        ("max_num_seqs", [8, 9], "must be a whole number, not [8, 9]"),
        ("gpu_memory_utilization", "high", "must be a number, not 'high'"),
        ("enforce_eager", "nope", "must be true or false, not 'nope'"),
        ("tokenizer_revision", 1234, "must be text, not 1234"),
    ],
)
def test_values_of_simple_types(name: str, value: object, said: str) -> None:
    """One line, before anything is started; vLLM itself would say it late and at length."""
    pytest.importorskip("vllm")
    assert mistaken_arg({name: value}) == f"{name}: {said}"


def test_right_values() -> None:
    """Whole numbers are numbers too, and nothing is nothing."""
    pytest.importorskip("vllm")
    right = {"max_model_len": 4096, "gpu_memory_utilization": 1, "watermark": 0.5, "enforce_eager": True, "tokenizer": "x"}
    assert mistaken_arg(right) is None
    assert mistaken_arg(dict.fromkeys(right)) is None


def test_without_vllm_anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vLLM is not installed, only what is set elsewhere can be refused."""
    monkeypatch.setattr(vllm_args, "known_engine_args", lambda: None)
    assert mistaken_arg({"xyzzy": 1}) is None
    assert mistaken_arg({"model": "x"}) is not None
