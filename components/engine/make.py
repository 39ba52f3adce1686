"""Chooses the engine a graph asks for; imports vLLM only when it is the one."""

from components.engine.protocol import Engine
from components.graph.schema import Graph, SimEngine, VllmEngine


def make_engine(settings: VllmEngine | SimEngine, graph: Graph) -> Engine:
    """Return the engine described by `settings`, not yet started; it tells of its KV only where a router goes by it."""
    router = graph.components.router
    kv_events = router is not None and router.wants_kv_events
    if isinstance(settings, SimEngine):
        from components.engine import sim

        return sim.SimEngine(graph.model, settings, graph.kv.block_size, kv_events=kv_events)
    from components.engine import vllm

    return vllm.VllmEngine(graph.model, graph.model_name, settings, graph.kv.block_size, kv_events=kv_events)
