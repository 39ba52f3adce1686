"""What the graph says of LMCache, in LMCache's own words."""

import itertools
import json
from pathlib import Path

import pytest

from components.engine.lmcache_config import connector_config, connector_options, coordinator_arguments, server_arguments
from components.graph.schema import LMCache


def options(words: list[str]) -> dict[str, str | None]:
    """Return a command line's options and their values."""
    pairs = itertools.pairwise([*words, "--"])
    return {word: None if value.startswith("--") else value for word, value in pairs if word.startswith("--")}


def arguments(settings: LMCache, *, on_cpu: bool = False, can_silence_events: bool = False) -> list[str]:
    """Return the server's arguments."""
    return server_arguments(settings, "lmcache-0", on_cpu=on_cpu, can_silence_events=can_silence_events)


def test_the_server_gets_what_the_graph_says() -> None:
    """Each setting by its option; every word is text."""
    words = arguments(LMCache(port=1, http_port=2, chunk_tokens=256, l1_gb=3.5, eviction_policy="ARC"))
    assert words[0] == "server"
    assert all(isinstance(word, str) for word in words)
    assert options(words) == {
        "--instance-id": "lmcache-0",
        "--quiet": None,
        "--host": "127.0.0.1",
        "--port": "1",
        "--http-host": "127.0.0.1",
        "--http-port": "2",
        "--chunk-size": "256",
        "--l1-size-gb": "3.5",
        "--eviction-policy": "ARC",
    }


@pytest.mark.parametrize(("on_cpu", "can_silence", "silent"), [(True, True, "0"), (True, False, None), (False, True, None)])
def test_engines_on_a_cpu_move_kv_themselves(on_cpu: bool, can_silence: bool, silent: str | None) -> None:
    """Only there, and then the server keeps quiet of events where its version can."""
    given = options(arguments(LMCache(), on_cpu=on_cpu, can_silence_events=can_silence))
    assert given.get("--supported-transfer-mode") == ("engine_driven" if on_cpu else None)
    assert given.get("--kv-event-log-size") == silent


def test_slower_stores_behind_it() -> None:
    """One option each, in order, as the JSON that LMCache takes."""
    words = arguments(LMCache(l2=[{"type": "fs", "base_path": "/kv"}, {"type": "resp"}]))
    adapters = [json.loads(value) for word, value in itertools.pairwise(words) if word == "--l2-adapter"]
    assert adapters == [{"type": "fs", "base_path": "/kv"}, {"type": "resp"}]


def test_further_options() -> None:
    """By either spelling; booleans as a flag, maps and lists as JSON."""
    extra = {"max-workers": 4, "some_thing": True, "other": False, "map": {"a": [1]}}
    given = options(arguments(LMCache(args=extra)))
    assert given["--max-workers"] == "4"
    assert "--some-thing" in given
    assert "--no-other" in given
    assert json.loads(given["--map"] or "") == {"a": [1]}


def test_every_engine_stores_and_loads() -> None:
    """Through the server of the graph; KV that cannot be loaded after all is computed."""
    settings = LMCache(host="10.0.0.1", port=7, timeout_s=2.5)
    config = connector_config(settings)
    assert (config["kv_connector"], config["kv_role"]) == ("LMCacheMPConnector", "kv_both")
    assert config["kv_load_failure_policy"] == "recompute"
    told = config["kv_connector_extra_config"]
    assert told == connector_options(settings)
    assert (told["lmcache.mp.host"], told["lmcache.mp.port"]) == ("tcp://10.0.0.1", 7)
    assert told["lmcache.mp.mq_timeout"] == 2.5


def test_a_server_reports_to_a_coordinator_where_there_is_one() -> None:
    """Under its own address, in a moment; without one it reports to nobody."""
    alone = server_arguments(LMCache(), "lmcache-0", on_cpu=True, can_silence_events=True)
    assert not any("coordinator" in word for word in alone)
    url = "http://127.0.0.1:9300"
    words = server_arguments(LMCache(), "lmcache-0", url, on_cpu=True, can_silence_events=True)
    assert words[words.index("--coordinator-url") + 1] == url
    assert words[words.index("--coordinator-advertise-ip") + 1] == "127.0.0.1"
    assert "--coordinator-event-reporting" in words


def test_a_coordinator_cuts_prompts_as_its_servers_do() -> None:
    """And keeps what it knows."""
    settings = LMCache(coordinator_port=9300, chunk_tokens=128)
    words = coordinator_arguments(settings, Path("/state/checkpoint"))
    assert words[0] == "coordinator"
    assert words[words.index("--chunk-size") + 1] == "128"
    assert words[words.index("--checkpoint-path") + 1] == "/state/checkpoint"
    assert "--checkpoint-path" not in coordinator_arguments(settings, None)
