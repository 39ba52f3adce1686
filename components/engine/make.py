"""Chooses the engine, and the server of the shared cache, that a graph asks for; imports vLLM only when it is the one."""

from pathlib import Path

from components.engine.protocol import CacheServer, Engine, EngineStartError
from components.graph.schema import Graph, SimEngine, VllmEngine


def make_engine(settings: VllmEngine | SimEngine, graph: Graph) -> Engine:
    """Return the engine described by `settings`, not yet started; it tells of its KV only where somebody goes by it."""
    if isinstance(settings, SimEngine):
        from components.engine import sim, sim_shared

        shared = sim_shared.shared_file(graph)
        return sim.SimEngine(graph.model, settings, graph.kv.block_size, kv_events=graph.tells_kv, shared=shared)
    from components.engine import vllm

    return vllm.VllmEngine(
        graph.model, graph.model_name, settings, graph.kv.block_size, kv_events=graph.tells_kv, lmcache=graph.lmcache
    )


def cache_server_reports(graph: Graph) -> bool:
    """Whether the server of `graph`'s shared cache shall tell of each change of what it holds."""
    settings = graph.lmcache
    if settings is None or _simulated(graph) or {"disable-observability", "disable_observability"} & set(settings.args):
        return False
    return settings.coordinator or graph.tells_kv


def make_cache_server(graph: Graph, name: str, report_to: str = "") -> CacheServer:
    """Return the server of `graph`'s shared cache, not yet started.

    Args:
        graph: every setting.
        name: the server calls itself by the graph's name and this.
        report_to: URL of a coordinator to which it tells each change; empty: it tells nobody.

    Raises:
        EngineStartError: the graph has none.
    """
    if graph.lmcache is None:
        raise EngineStartError("lmcache: is missing")
    if _simulated(graph):
        from components.engine import sim_server

        return sim_server.SimCacheServer(graph.lmcache, graph.part)
    from components.engine import lmcache_server

    return lmcache_server.server(graph.lmcache, f"{graph.name}-{name}", report_to)


def make_coordinator(graph: Graph, folder: Path | None) -> CacheServer:
    """Return the coordinator of `graph`'s cache servers, not yet started; it keeps a file in `folder`.

    Raises:
        EngineStartError: the graph has none.
    """
    if graph.lmcache is None or not graph.lmcache.coordinator_port:
        raise EngineStartError("lmcache.coordinator_port: is missing")
    from components.engine import lmcache_server

    return lmcache_server.coordinator(graph.lmcache, folder / "coordinator.checkpoint" if folder else None)


def _simulated(graph: Graph) -> bool:
    workers = graph.components.decode, graph.components.prefill
    return any(isinstance(each.engine, SimEngine) for each in workers if each is not None)
