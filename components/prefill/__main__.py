"""A prefill worker process."""

import sys

from components.bus.process import FatalError, Process, run
from components.engine.make import make_engine
from components.engine.protocol import Engine, EngineInfo
from components.prefill.metrics import Metrics
from components.prefill.queue_gauges import QueueGauges
from components.prefill.service import PrefillService
from components.worker.engine_process import announce_kv, serve_engine
from components.worker.prefill_queue import lane, open_prefill_queue


async def serve(process: Process) -> None:
    """Run one prefill worker until it is told to stop.

    Raises:
        FatalError: the engine cannot start, or died.
    """
    graph = process.graph
    settings, decode = graph.components.prefill, graph.components.decode
    if settings is None or graph.lmcache is None:
        raise FatalError("components.prefill: and lmcache are needed by a prefill worker")
    engine_settings = settings.engine or (decode.engine if decode else None)
    if engine_settings is None:
        raise FatalError("components.prefill.engine: is missing")
    engine = make_engine(engine_settings, graph)
    await serve_engine(process, engine, settings.drain_timeout_s, lambda info: _open(engine, info, process))


async def _open(engine: Engine, info: EngineInfo, process: Process) -> PrefillService:
    """Connect the engine to the bus and the queue."""
    member = process.member
    queue = await open_prefill_queue(process.bus, process.subjects, process.graph)
    metrics = Metrics(member.registry)
    service = PrefillService(
        member.name, process.graph, engine, info, queue, process.bus, process.subjects, metrics, process.tasks
    )
    await announce_kv(engine, process, process.graph.process_name("lmcache", 0))
    await service.open()
    process.tasks.create_task(QueueGauges(lane(process.graph), member.registry).watch(queue))
    return service


if __name__ == "__main__":
    sys.exit(run("prefill", serve))
