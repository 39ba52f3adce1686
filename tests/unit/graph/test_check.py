"""What would fail later, or silently not be meant, is refused when a graph is read: one line, the path first."""

from pathlib import Path

import pytest
import yaml

from components.graph.load import GraphError, graph_from_raw, load_graph

GOOD = "{model: demo, components: {processor: {}, decode: {engine: {kind: sim}}}}"
ENGINE = "components.decode.engine"
POLICIES = ["kv", "approximate", "round_robin", "random", "least_loaded"]


def refusal(*overrides: str) -> str:
    """Return why a good graph with `overrides` is refused."""
    with pytest.raises(GraphError) as error:
        graph_from_raw(yaml.safe_load(GOOD), overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("name=a b", "name: must be 1 to 64 letters, digits, `-` and `_`, not 'a b'"),
        ("name=../x", "name: must be 1 to 64 letters"),
        ("name=a.b", "name: must be 1 to 64 letters"),
        ("name=''", "name: must be 1 to 64 letters"),
        ("name=é", "name: must be 1 to 64 letters"),
        (f"name={'a' * 65}", "name: must be 1 to 64 letters"),
        ('name="a\\n"', "name: must be 1 to 64 letters"),
        ("served_model_name=''", "served_model_name: must not be empty"),
        ("http.request_timeout_s=.nan", "http.request_timeout_s: must be a finite number, not nan"),
        ("decode.drain_timeout_s=.inf", "components.decode.drain_timeout_s: must be a finite number, not inf"),
        ("decode.engine.speed=.inf", f"{ENGINE}.speed: must be a finite number, not inf"),
        ("decode.engine={kind: vllm, a: [1, {b: -.inf}]}", f"{ENGINE}.args.a.1.b: must be a finite number, not -inf"),
        ("decode.engine.speed=0", f"{ENGINE}.speed: must be more than 0, not 0.0"),
        ("decode.engine.speed=-1", f"{ENGINE}.speed: must be more than 0, not -1.0"),
        ("decode.engine.max_model_len=0", f"{ENGINE}.max_model_len: must be at least 1, not 0"),
        ("decode.engine.max_running_requests=0", f"{ENGINE}.max_running_requests: must be at least 1, not 0"),
        ("decode.engine.max_batched_tokens=-5", f"{ENGINE}.max_batched_tokens: must be at least 1, not -5"),
        ("decode.engine.kv_blocks=255", f"{ENGINE}.kv_blocks: 255 blocks of 32 tokens hold 8160, less than one request of"),
        ("decode.engine={kind: vllm, max_model_len: 0}", f"{ENGINE}.max_model_len: must be at least 1, or -1"),
        ("decode.engine={kind: vllm, kv_cache_gb: 0}", f"{ENGINE}.kv_cache_gb: must be more than 0, not 0.0"),
        ("decode.gpus=[0]", "components.decode.gpus: is for vLLM; the sim engine uses none"),
        ("telemetry.otlp_endpoint=collector:4318", "telemetry.otlp_endpoint: must be a URL such as http://127.0.0.1:4318"),
        ("telemetry.trace_ratio=1.5", "telemetry.trace_ratio: must be 0 to 1, not 1.5"),
        ("supervision.silence_timeout_s=1", "supervision.silence_timeout_s: must be more than 1, statuses come so often"),
        ("decode.replicas=100000", "components.decode.replicas: must be at most 4096, not 100000"),
        ("processor.replicas=4097", "components.processor.replicas: must be at most 4096, not 4097"),
        ("nats=http://h:4222", "nats: must be host:port after one of nats://, tls://, ws://, wss://, not 'http://h:4222'"),
        ("nats=nats://", "nats: must be host:port after one of"),
        ("nats=nats://h:99999", "nats: must be host:port after one of"),
        (
            "nats={url: 'nats://a:1, ftp://b:2'}",
            "nats.url: must be host:port after one of nats://, tls://, ws://, wss://, not 'ftp",
        ),
    ],
)
def test_senseless_values_are_refused(override: str, says: str) -> None:
    """Each with the path of the setting."""
    assert refusal(override).startswith(says)


@pytest.mark.parametrize(
    "override",
    [
        f"name={'a' * 64}",
        "name=A-b_9",
        "decode.engine.kv_blocks=256",
        "decode.engine={kind: vllm, max_model_len: -1}",
        "decode.replicas=4096",
        "nats=wss://h:443,tls://[::1]:4222",
        "nats={url: 'nats://a:1, nats://b'}",
    ],
)
def test_the_last_sensible_values_are_taken(override: str) -> None:
    """The border itself is allowed."""
    assert graph_from_raw(yaml.safe_load(GOOD), [override]).model == "demo"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("decode.engine.kind=simm", f"{ENGINE}.kind: invalid value 'simm'; there are: vllm, sim"),
        (
            "router.policy=best",
            "components.router.policy: invalid enum value 'best'; there are: " + ", ".join(POLICIES),
        ),
        (
            "telemetry.log_level=loud",
            "telemetry.log_level: invalid enum value 'loud'; there are: debug, info, warning, error",
        ),
        ("decode.engine.output=x", f"{ENGINE}.output: invalid enum value 'x'; there are: echo, random"),
        ("http.prot=1", "http.prot: unknown setting; did you mean `port`?"),
        ("max_choices=1", "max_choices: unknown setting; did you mean `http.max_choices`?"),
        ("zzz=1", "zzz: unknown setting"),
    ],
)
def test_refusals_tell_what_there_is(override: str, says: str) -> None:
    """The choices of a setting that has few, or the setting that was meant, with its path when it stands elsewhere."""
    assert refusal(override) == says


def test_a_component_at_the_top_is_shown_its_place() -> None:
    """`router: {}` beside `components` is a common slip."""
    with pytest.raises(GraphError) as error:
        graph_from_raw({**yaml.safe_load(GOOD), "router": {}})
    assert str(error.value) == "router: unknown setting; did you mean `components.router`?"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: a\nname: b\nmodel: c\n", "gives `model` twice, the second time in line 3"),
        (
            "model: a\ncomponents:\n  decode: {replicas: 1, replicas: 2}\n",
            "gives `replicas` twice, the second time in line 3",
        ),
        ("a: " + "[" * 5000, "is nested too deeply"),
        ("a: " + "{a: " * 5000, "is nested too deeply"),
        ("model: demo\ncomponents: {decode: {engine: &e {x: *e}}}\n", "is nested too deeply"),
        ("? [a]\n: 1\n", "is not YAML: "),
    ],
)
def test_yaml_that_hides_or_breaks_things(tmp_path: Path, text: str, says: str) -> None:
    """A key given twice, with its line; nesting without end; values YAML itself chokes on."""
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(GraphError) as error:
        load_graph(file)
    assert str(error.value).startswith(f"{file}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_merge_keys_stay_allowed(tmp_path: Path) -> None:
    """A map that takes another's settings with `<<` may give some of them anew."""
    file = tmp_path / "merged.yaml"
    file.write_text(
        "model: demo\nhttp: &h {port: 9001}\ncomponents: {processor: {}, decode: {replicas: 2, engine: {kind: sim}}}\n"
    )
    assert load_graph(file).http.port == 9001
    file.write_text(
        "model: demo\ncomponents:\n  decode: {engine: {kind: sim}, <<: &d {replicas: 2, drain_timeout_s: 1}, replicas: 3}\n"
    )
    decode = load_graph(file).components.decode
    assert decode is not None
    assert (decode.replicas, decode.drain_timeout_s) == (3, 1.0)


def test_a_set_value_is_held_to_the_same() -> None:
    """`--set` reads YAML too."""
    assert refusal("decode.engine={kind: sim, kind: vllm}").startswith(
        "--set decode.engine={kind: sim, kind: vllm}: the value gives"
    )
    assert refusal("a=" + "[" * 5000).endswith("the value is nested too deeply")
