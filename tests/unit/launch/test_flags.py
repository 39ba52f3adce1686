"""Flags to graphs: `penstock serve` and `dynamo-llm`."""

from typing import Any

import pytest

from components.graph.load import GraphError
from components.graph.schema import SimEngine, VllmEngine
from components.launch.dynamo_llm import FlagError, graph_from_argv
from components.launch.flags import ServeFlags, engine_args_from, graph_from_flags, without_option


@pytest.mark.parametrize(
    ("rest", "arguments"),
    [
        ([], {}),
        (["--max-num-seqs", "8"], {"max_num_seqs": 8}),
        (["--max-num-seqs=8"], {"max_num_seqs": 8}),
        (["--enforce-eager"], {"enforce_eager": True}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--dtype", "bfloat16", "--enforce-eager", "--seed", "1"], {"dtype": "bfloat16", "enforce_eager": True, "seed": 1}),
        (["--hf-overrides", '{"a": [1]}'], {"hf_overrides": {"a": [1]}}),
        (["--middleware", "a", "b"], {"middleware": ["a", "b"]}),
        (["--gpu-memory-utilization", "0.5"], {"gpu_memory_utilization": 0.5}),
    ],
)
def test_engine_arguments(rest: list[str], arguments: dict[str, Any]) -> None:
    """Flags become vLLM's Python names with typed values."""
    assert engine_args_from(rest) == arguments


def test_a_word_without_a_flag_is_refused() -> None:
    """A stray word is named."""
    with pytest.raises(ValueError, match="unexpected argument stray"):
        engine_args_from(["stray"])


def test_serve_defaults() -> None:
    """A model is enough."""
    graph = graph_from_flags(ServeFlags(model="demo"))
    assert (graph.name, graph.http.port, graph.components.decode.replicas) == ("serve-8181", 8181, 1)  # type: ignore[union-attr]


def test_serve_sim() -> None:
    """Another engine, and settings on top."""
    graph = graph_from_flags(ServeFlags(model="demo", engine="sim", decode_workers=3, overrides=("http.max_choices=2",)))
    assert graph.components.decode
    assert isinstance(graph.components.decode.engine, SimEngine)
    assert graph.components.decode.replicas == 3
    assert graph.http.max_choices == 2


def test_the_original_command() -> None:
    """The document's first command line."""
    graph, _ = graph_from_argv(["--model", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"])
    assert graph.model == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert graph.http.port == 8181
    assert graph.nats == "embedded"


def test_every_flag_of_this_version() -> None:
    """Flags reach their settings; unknown ones reach the engine."""
    words = "--model demo --decode-workers 2 --decode-tp 2 --block-size 64 --max-model-len 512 --http-port 9999 --reuse-gpus"
    graph, flags = graph_from_argv([*words.split(), "--hf-hub-offline", "--max-num-seqs", "8", "--enforce-eager"])
    decode = graph.components.decode
    assert decode
    assert isinstance(decode.engine, VllmEngine)
    assert decode.replicas == 2
    assert decode.engine.args == {
        "tensor_parallel_size": 2, "max_model_len": 512, "max_num_seqs": 8, "enforce_eager": True
    }  # fmt: skip
    assert (graph.kv.block_size, graph.http.port, graph.supervision.reuse_gpus) == (64, 9999, True)
    assert flags.hf_hub_offline


@pytest.mark.parametrize(
    "words",
    [
        "--prefill-workers 1",
        "--prefill-tp 2",
        "--conditional-disagg",
        "--max-local-prefill-length 10",
        "--max-prefill-queue-size 2",
    ],
)
def test_what_is_not_there_yet_is_refused(words: str) -> None:
    """One line that names the flag."""
    with pytest.raises(FlagError, match=words.split()[0]):
        graph_from_argv(["--model", "demo", *words.split()])


@pytest.mark.parametrize(("flag", "policy"), [("kv", "kv"), ("random", "random"), ("round-robin", "round_robin")])
def test_a_router_by_the_original_names(flag: str, policy: str) -> None:
    """`--router` adds one with that policy; without the flag there is none."""
    graph, _ = graph_from_argv(["--model", "demo", "--router", flag])
    assert graph.components.router
    assert (graph.components.router.policy, graph.components.router.http_port) == (policy, 8182)
    assert graph_from_argv(["--model", "demo"])[0].components.router is None


def test_a_bad_value_names_its_setting() -> None:
    """A port beyond the range is the graph's own complaint."""
    with pytest.raises(GraphError, match=r"http\.port"):
        graph_from_argv(["--model", "demo", "--http-port", "70000"])


def test_an_option_is_taken_out_of_a_command_line() -> None:
    """In both spellings, as often as it stands there; nothing else."""
    argv = ["penstock", "serve", "--api-key", "k", "--api-keys", "--host=h", "--api-key=k", "--api-key"]
    assert without_option(argv, "--api-key") == ["penstock", "serve", "--api-keys", "--host=h"]
