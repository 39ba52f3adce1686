"""Every mistake in a graph is one line that names the setting."""

from pathlib import Path

import pytest
import yaml

from components.graph.load import GraphError, dump_graph, graph_from_raw, load_graph
from components.graph.schema import Graph, SimEngine, VllmEngine

GOOD = """
model: demo
components:
  processor: {}
  decode: {replicas: 2, engine: {kind: vllm, max_model_len: 4096, seed: 3}}
"""


def graph(text: str, *overrides: str) -> Graph:
    """Return the graph in `text`."""
    return graph_from_raw(yaml.safe_load(text), overrides)


def test_engine_arguments_stand_beside_the_kind() -> None:
    """What is no setting of ours goes to vLLM as it is."""
    decode = graph(GOOD).components.decode
    assert decode is not None
    assert decode.engine == VllmEngine(args={"max_model_len": 4096, "seed": 3})


def test_set_overrides_with_and_without_the_leading_components() -> None:
    """`decode.replicas` and `components.decode.replicas` are the same; values are YAML."""
    for path in ("decode.replicas", "components.decode.replicas"):
        decode = graph(GOOD, f"{path}=4").components.decode
        assert decode is not None
        assert decode.replicas == 4
    sim = graph(GOOD, "decode.engine={kind: sim, speed: 2}").components.decode
    assert sim is not None
    assert sim.engine == SimEngine(speed=2)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("decode.replica=4", "components.decode.replica: unknown setting; did you mean `replicas`?"),
        ("decode.replicas=two", "components.decode.replicas: expected `int`, got `str`"),
        ("decode.replicas=0", "components.decode.replicas: must be at least 1, not 0"),
        ("http.port=70000", "http.port: must be 1 to 65535, not 70000"),
        ("http.request_timeout_s=0", "http.request_timeout_s: must be more than 0 seconds, not 0.0"),
        ("http.tls_cert_file=cert.pem", "http.tls_cert_file: and http.tls_key_file are needed together"),
        ("decode.engine={kind: simm}", "components.decode.engine.kind: invalid value 'simm'"),
        ("decode.engine={kind: sim, max_num_seqs: 3}", "components.decode.engine.max_num_seqs: unknown setting"),
        ("nats=localhost", "nats: must be `embedded`, a URL such as nats://host:4222, or a map, not 'localhost'"),
        ("nats={}", "nats.url: is missing"),
        ("model=", "model: expected `str`, got `null`"),
        ("components.decode=", "components.decode: is missing; a graph needs workers"),
        ("host=a", "host: is for a graph on several machines, which needs a NATS server of yours; set nats"),
        ("host=a/b", "host: must be letters, digits, `_`, `.` and `-`, not 'a/b'"),
        ("decode.replicas", "--set decode.replicas: expected path=value, such as decode.replicas=4"),
        ("model.x=3", "--set model.x=3: model is not a map"),
        ("decode.engine={", "--set decode.engine={: the value is not YAML"),
    ],
)
def test_mistakes_name_their_path(override: str, says: str) -> None:
    """One line, the path first, then what is wrong."""
    with pytest.raises(GraphError) as error:
        graph(GOOD, override)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "a graph is a map of settings, this is empty"),
        (b"- a\n", "a graph is a map of settings, this is a list"),
        (b"a: [\n", "is not YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"model: demo\n", "components: is missing"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, says: str) -> None:
    """The file's name and the reason, in one line."""
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(GraphError) as error:
        load_graph(file)
    assert str(error.value).startswith(str(file))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path stands in the text."""
    with pytest.raises(GraphError, match=r"none\.yaml"):
        load_graph(tmp_path / "none.yaml")


def test_dump_and_load_agree(tmp_path: Path) -> None:
    """What the supervisor writes for its children is what it has."""
    before = graph(GOOD, "http.port=9999", "name=other", "nats={url: 'nats://h:4222', tls_ca_file: ca.pem}")
    file = tmp_path / "graph.yaml"
    file.write_text(dump_graph(before))
    assert load_graph(file) == before


@pytest.mark.parametrize("file", sorted(Path("graphs").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_graphs_load(file: Path) -> None:
    """Every graph in graphs/ is valid and named after its file."""
    assert load_graph(file).name == file.stem


@pytest.mark.parametrize(
    "nats",
    ["nats://me:secret@host:4222", "{url: 'nats://a:4222,nats://me:secret@host'}", "tls://secret@h", "me:secret@host"],
)
def test_secrets_do_not_stand_in_the_nats_url(nats: str) -> None:
    """User, password or token in a URL: refused with the variables that take them, and not repeated."""
    with pytest.raises(GraphError) as error:
        graph(GOOD, f"nats={nats}")
    assert str(error.value).startswith("nats: ")
    assert "PENSTOCK_NATS_USER and PENSTOCK_NATS_PASSWORD" in str(error.value)
    assert "secret" not in str(error.value)


ELSEWHERE = "nats=nats://host:4222"


def test_a_part_of_a_graph_leaves_the_rest_to_other_machines() -> None:
    """With a NATS server of the user's, workers, processors or routers may be missing here, or have 0 replicas."""
    assert graph(GOOD, ELSEWHERE, "components.decode=").components.decode is None
    assert graph(GOOD, ELSEWHERE, "components.processor=").components.processor is None
    part = graph(GOOD, ELSEWHERE, "host=b", "processor.replicas=0", "router.replicas=0", "name=big")
    assert part.part == "big-b"
    assert part.process_name("decode", 1) == "decode-b-1"
    assert graph(GOOD, "name=big").part == "big"
    for overrides in (["decode.replicas=0", "processor.replicas=0"], ["components.decode=", "components.processor="]):
        with pytest.raises(GraphError, match="components: there is nothing to run here"):
            graph(GOOD, ELSEWHERE, *overrides)
    with pytest.raises(GraphError, match=r"components\.decode\.replicas: must be at least 0, not -1"):
        graph(GOOD, ELSEWHERE, "decode.replicas=-1")
