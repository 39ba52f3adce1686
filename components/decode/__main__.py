"""A decode worker process: starts its engine, serves until told to stop or the engine dies, drains."""

import sys

from components.bus.member import Member
from components.bus.process import FatalError, Process, run, unless
from components.decode.kv_publisher import KvPublisher
from components.decode.outbox import Outbox
from components.decode.service import DecodeService
from components.engine.make import make_engine
from components.engine.protocol import Engine, EngineInfo, EngineStartError
from components.wire.messages import ProcessState


async def serve(process: Process) -> None:
    """Run one decode worker until it is told to stop.

    Raises:
        FatalError: the engine cannot start, or died.
    """
    settings = process.graph.components.decode
    if settings is None:
        raise FatalError("components.decode: is missing")
    engine = make_engine(settings.engine, process.graph)
    try:
        info = await _start(engine, process.member)
        if info is None:
            return
        service = await _open(engine, info, process)
        process.member.become(ProcessState.READY, info.version)
        reason = await unless(process.member.stopping, engine.failed())
        process.member.become(ProcessState.DRAINING)
        await service.drain(settings.drain_timeout_s if reason is None else 1.0)
        if reason is not None:
            raise FatalError(f"the engine died: {reason}")
    finally:
        await engine.stop()


async def _start(engine: Engine, member: Member) -> EngineInfo | None:
    """Start the engine; None when told to stop meanwhile."""
    try:
        return await unless(member.stopping, engine.start(lambda detail: member.become(ProcessState.STARTING, detail)))
    except* EngineStartError as group:
        raise FatalError(str(group.exceptions[0])) from group


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
        await _announce_kv(engine, process)
    await service.listen(process.bus, process.subjects)
    member.offer(service.status)
    member.expose(engine.metrics)
    return service


async def _announce_kv(engine: Engine, process: Process) -> None:
    """Tell the routers what the engine holds, from now on."""
    member = process.member
    publisher = KvPublisher(process.bus, process.subjects, member.name, member.incarnation, member.registry)
    await publisher.listen()
    process.tasks.create_task(publisher.run(engine.kv_updates()))
    process.tasks.create_task(publisher.keep_alive())


if __name__ == "__main__":
    sys.exit(run("decode", serve))
