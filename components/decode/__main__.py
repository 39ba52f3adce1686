"""A decode worker process."""

import sys

from components.bus.process import FatalError, Process, run
from components.decode.outbox import Outbox
from components.decode.service import DecodeService
from components.engine.make import make_engine
from components.engine.protocol import Engine, EngineInfo
from components.worker.engine_process import announce_kv, serve_engine


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
    member = process.member
    outbox = Outbox(process.bus, process.subjects, member.name, member.incarnation)
    service = DecodeService(member.name, process.graph.model_name, engine, info, outbox, process.tasks)
    service.count_in(member.registry)
    process.tasks.create_task(outbox.run())
    process.tasks.create_task(outbox.keep_alive())
    router = process.graph.components.router
    if router is not None and router.wants_kv_events:
        await announce_kv(engine, process)
    await service.listen(process.bus, process.subjects)
    return service


if __name__ == "__main__":
    sys.exit(run("decode", serve))
