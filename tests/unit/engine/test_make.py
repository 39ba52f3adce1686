"""Which engines tell of their KV, and what they share it through."""

from typing import Any

import pytest

from components.engine.make import make_cache_server, make_engine
from components.engine.sim import SimEngine
from components.engine.sim_server import SimCacheServer
from components.graph.load import graph_from_raw


def make(router: dict[str, Any] | None) -> SimEngine:
    """Return the engine of a graph with this router."""
    parts: dict[str, Any] = {"processor": {}, "decode": {"engine": {"kind": "sim"}}}
    graph = graph_from_raw({"model": "demo", "components": parts | ({"router": router} if router is not None else {})})
    assert graph.components.decode is not None
    engine = make_engine(graph.components.decode.engine, graph)
    assert isinstance(engine, SimEngine)
    return engine


@pytest.mark.parametrize("router", [None, {"policy": "approximate"}, {"policy": "round_robin"}, {"policy": "least_loaded"}])
def test_nobody_tells_what_nobody_goes_by(router: dict[str, Any] | None) -> None:
    """KV events cost; only the policy kv reads them."""
    assert make(router)._kv is None


def test_the_policy_kv_is_told() -> None:
    """It is a router's default."""
    assert make({})._kv is not None
    assert make({"policy": "kv", "session_ttl_s": 60})._kv is not None


def test_simulated_engines_share_a_simulated_cache() -> None:
    """Where the graph has a shared cache, whose server has no LMCache either."""
    workers = {"decode": {"engine": {"kind": "sim"}}, "processor": {}}
    graph = graph_from_raw({"model": "demo", "name": "made", "components": workers, "lmcache": {"port": 7000}})
    assert graph.components.decode is not None
    engine = make_engine(graph.components.decode.engine, graph)
    assert isinstance(engine, SimEngine)
    assert engine._shared is not None
    server = make_cache_server(graph, "lmcache-0")
    assert isinstance(server, SimCacheServer)
    assert engine._shared_file is not None
    assert engine._shared_file._path == server._path
    assert make(None)._shared is None
