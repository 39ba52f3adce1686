"""A decode worker process."""

import sys

from components.bus.process import FatalError, Process, run
from components.decode.outbox import Outbox
from components.decode.prefill_metrics import Metrics
from components.decode.remote_prefill import RemotePrefill
from components.decode.service import DecodeService
from components.engine.make import make_engine
from components.engine.protocol import Engine, EngineInfo
from components.worker.engine_process import announce_kv, serve_engine
from components.worker.prefill_queue import open_prefill_queue


async def serve(process: Process) -> None:
    """Run one decode worker until it is told to stop.

    Raises:
        FatalError: the engine cannot start, or died.
    """
    settings = process.graph.components.decode
    if settings is None:
        raise FatalError("components.decode: is missing")
    engine = make_engine(settings.engine, process.graph)
    await serve_engine(process, engine, settings.drain_timeout_s, lambda info: _open(engine, info, process))


async def _open(engine: Engine, info: EngineInfo, process: Process) -> DecodeService:
    """Connect the engine to the bus."""
    member, graph, tasks = process.member, process.graph, process.tasks
    outbox = Outbox(process.bus, process.subjects, member.name, member.incarnation)
    store = graph.process_name("lmcache", 0) if graph.lmcache else ""
    remote = await _open_remote_prefill(engine, process, store)
    service = DecodeService(member.name, graph.model_name, engine, info, outbox, tasks, remote, store)
    service.count_in(member.registry)
    tasks.create_task(outbox.run())
    tasks.create_task(outbox.acknowledge())
    tasks.create_task(outbox.keep_alive())
    await service.listen(process.bus, process.subjects)
    return service


async def _open_remote_prefill(engine: Engine, process: Process, store: str) -> RemotePrefill | None:
    """Tell what the engine holds where somebody goes by it: routers, or this worker's own placement of prefills."""
    graph, member = process.graph, process.member
    router = graph.components.router
    if not graph.disaggregated:
        if router is not None and router.wants_kv_events:
            await announce_kv(engine, process, store)
        return None
    publisher = await announce_kv(engine, process, store)
    queue = await open_prefill_queue(process.bus, process.subjects, graph)
    remote = RemotePrefill(
        member.name, graph, engine, publisher.held, queue, process.bus, process.subjects, Metrics(member.registry)
    )
    await remote.listen()
    process.tasks.create_task(remote.watch())
    return remote


if __name__ == "__main__":
    sys.exit(run("decode", serve))
