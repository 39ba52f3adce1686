"""LMCache's command lines."""

from pathlib import Path

from components.engine.lmcache_config import coordinator_arguments, server_arguments
from components.graph.schema import LMCache


def test_a_server_reports_to_a_coordinator_where_there_is_one() -> None:
    """Under its own address, in a moment; without one it reports to nobody."""
    alone = server_arguments(LMCache(), "lmcache-0", on_cpu=True, can_silence_events=True)
    assert not any("coordinator" in word for word in alone)
    words = server_arguments(LMCache(coordinator_port=9300), "lmcache-0", on_cpu=True, can_silence_events=True)
    assert words[words.index("--coordinator-url") + 1] == "http://127.0.0.1:9300"
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
