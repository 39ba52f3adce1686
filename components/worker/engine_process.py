"""The life of a process that owns one engine: start it, serve until told to stop or the engine dies, drain, stop it."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from components.bus.member import Member
from components.bus.process import FatalError, Process, unless
from components.engine.protocol import Engine, EngineInfo, EngineStartError
from components.wire.process import ProcessState, WorkerStatus
from components.worker.kv_publisher import KvPublisher
from components.worker.store_watch import StoreWatch


class Service(Protocol):
    """What such a process does with its engine."""

    def status(self) -> WorkerStatus:
        """Return what it offers and how busy it is."""
        ...

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new; finish what runs within `timeout_s` seconds, and give the rest back."""
        ...


async def serve_engine(
    process: Process, engine: Engine, drain_timeout_s: float, open_service: Callable[[EngineInfo], Awaitable[Service]]
) -> None:
    """Run `engine` and its service until the process is told to stop.

    Args:
        process: this one.
        engine: not started yet.
        drain_timeout_s: how long the service may finish what it has.
        open_service: called with the started engine; from its return on the service serves.

    Raises:
        FatalError: the engine cannot start, or died.
    """
    member = process.member
    try:
        info = await _start(engine, member)
        if info is None:
            return
        service = await open_service(info)
        member.offer(service.status)
        member.expose(engine.metrics)
        member.become(ProcessState.READY, info.version)
        reason = await unless(member.stopping, engine.failed())
        member.become(ProcessState.DRAINING)
        await service.drain(drain_timeout_s if reason is None else 1.0)
        if reason is not None:
            raise FatalError(f"the engine died: {reason}")
    finally:
        await engine.stop()


async def announce_kv(engine: Engine, process: Process, store: str = "") -> KvPublisher:
    """Tell everybody who asks what the engine holds, and what it put into LMCache, from now on.

    Args:
        engine: started.
        process: this one.
        store: name of its LMCache server's process; empty without one.
    """
    member = process.member
    publisher = KvPublisher(process.bus, process.subjects, member.name, member.incarnation, member.registry)
    await publisher.listen()
    if store:
        silence_timeout_s = process.graph.supervision.silence_timeout_s
        watch = StoreWatch(process.bus, process.subjects, store, silence_timeout_s, publisher, engine)
        await watch.listen()
        process.tasks.create_task(watch.run())
    process.tasks.create_task(publisher.run(engine.kv_updates()))
    process.tasks.create_task(publisher.keep_alive())
    return publisher


async def _start(engine: Engine, member: Member) -> EngineInfo | None:
    """Start the engine; None when told to stop meanwhile."""
    try:
        return await unless(member.stopping, engine.start(lambda detail: member.become(ProcessState.STARTING, detail)))
    except* EngineStartError as group:
        raise FatalError(str(group.exceptions[0])) from group
