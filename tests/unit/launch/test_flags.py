"""Flags to graphs: `penstock serve` and `dynamo-llm`."""

from typing import Any

import pytest

from components.graph.load import GraphError
from components.graph.schema import Disagg, SimEngine, VllmEngine
from components.launch.dynamo_llm import FlagError, graph_from_argv
from components.launch.flags import ServeFlags, engine_args_from, graph_from_flags, without_option
from components.launch.plan import wanted_ports


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


def tensor_parallel(engine: object) -> object:
    """Return how many GPUs an engine takes."""
    assert isinstance(engine, VllmEngine)
    return engine.args.get("tensor_parallel_size", 1)


def test_every_prompt_goes_to_prefill_workers() -> None:
    """Without --conditional-disagg no prompt is too short, and nobody asks whether it pays; LMCache carries the KV."""
    graph, _ = graph_from_argv(["--model", "demo", "--prefill-workers", "2", "--http-port", "9000"])
    decode, prefill, lmcache = graph.components.decode, graph.components.prefill, graph.lmcache
    assert decode
    assert prefill
    assert lmcache
    assert (prefill.replicas, prefill.engine) == (2, None)
    rules = decode.disagg
    assert (rules.max_local_prefill_tokens, rules.always, rules.max_queue_depth) == (0, True, prefill.max_queue_jobs)
    assert (lmcache.port, lmcache.http_port) == (9002, 9003)


def test_conditional_disaggregation() -> None:
    """With it the thresholds count, those of the schema where none is given."""
    words = ["--model", "demo", "--prefill-workers", "1", "--conditional-disagg"]
    decode = graph_from_argv(words)[0].components.decode
    assert decode
    assert decode.disagg == Disagg()
    words += ["--max-local-prefill-length", "0", "--max-prefill-queue-size", "3"]
    decode = graph_from_argv(words)[0].components.decode
    assert decode
    assert decode.disagg == Disagg(max_local_prefill_tokens=0, max_queue_depth=3)


@pytest.mark.parametrize("words", ["--prefill-tp 2", "--decode-tp 4 --prefill-tp 2", "--worker-tp 2 --prefill-tp 1"])
def test_different_sizes_cannot_share_kv(words: str) -> None:
    """LMCache keeps KV of different tensor-parallel sizes apart."""
    with pytest.raises(GraphError, match=r"prefill\.engine\.tensor_parallel_size: must be the decode workers"):
        graph_from_argv(["--model", "demo", "--prefill-workers", "1", *words.split()])


@pytest.mark.parametrize(
    ("words", "decode_gpus", "prefill_gpus"),
    [
        ("", 1, 1),
        ("--worker-tp 2", 2, 2),
        ("--decode-tp 2", 2, 2),
        ("--decode-tp 2 --prefill-tp 2", 2, 2),
    ],
)
def test_gpus_a_worker_of_each_kind(words: str, decode_gpus: int, prefill_gpus: int) -> None:
    """Each kind's own flag counts, then that of both; prefill workers are like decode workers otherwise."""
    argv = ["--model", "demo", "--prefill-workers", "1", "--max-num-seqs", "8", *words.split()]
    components = graph_from_argv(argv)[0].components
    assert components.decode
    assert components.prefill
    prefill = components.prefill.engine or components.decode.engine
    assert (tensor_parallel(components.decode.engine), tensor_parallel(prefill)) == (decode_gpus, prefill_gpus)
    assert isinstance(prefill, VllmEngine)
    assert prefill.args["max_num_seqs"] == 8


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ("--prefill-tp 2", "--prefill-workers"),
        ("--conditional-disagg", "--prefill-workers"),
        ("--max-local-prefill-length 10", "--conditional-disagg"),
        ("--prefill-workers 1 --max-prefill-queue-size 2", "--conditional-disagg"),
    ],
)
def test_flags_without_effect_are_refused(words: str, needed: str) -> None:
    """One line that names the flag and what it needs."""
    flag = words.removeprefix("--prefill-workers 1 ").split()[0]
    with pytest.raises(GraphError, match=f"^{flag}: has no effect without {needed}$"):
        graph_from_argv(["--model", "demo", *words.split()])


@pytest.mark.parametrize(("block_size", "chunk_tokens"), [(16, 64), (32, 64), (48, 96), (128, 128)])
def test_chunks_hold_whole_blocks(block_size: int, chunk_tokens: int) -> None:
    """Whatever --block-size, LMCache's chunk is a multiple of it."""
    words = ["--model", "demo", "--prefill-workers", "1", "--block-size", str(block_size)]
    lmcache = graph_from_argv(words)[0].lmcache
    assert lmcache
    assert lmcache.chunk_tokens == chunk_tokens


def test_disaggregation_behind_a_router() -> None:
    """Both at once, as `penstock serve` makes them; no two processes want one port."""
    flags = ServeFlags(model="demo", router="kv", prefill_workers=1, decode_workers=2, http_port=9000, prefill_tp=1)
    graph = graph_from_flags(flags)
    assert sorted(wanted_ports(graph)) == [9000, 9001, 9002, 9003]


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


def test_a_stray_word_is_refused() -> None:
    """What is neither a flag nor a flag's value is named."""
    with pytest.raises(FlagError, match="unexpected argument stray"):
        graph_from_argv(["--model", "demo", "stray"])
