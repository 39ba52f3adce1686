"""A queue process: opens the store, serves submitters and workers, and lets workers find its successor when it ends."""

import sys

from components.bus.client import BusError
from components.bus.process import FatalError, Process, run
from components.http.edge import Limits
from components.http.server import Address, ListenError, listen
from components.jobs.book import Book
from components.jobs.dispatch import Dispatch
from components.jobs.metrics import Metrics, Watched
from components.jobs.routes import Routes
from components.jobs.service import JobService
from components.jobs.store import Store
from components.jobs.submitters import Submitters
from components.wire.process import ProcessState

_DRAIN_S = 2.0


async def serve(process: Process) -> None:
    """Run the queue until it is told to stop.

    Raises:
        FatalError: its port or its store cannot be had, or the graph has no jobs.
    """
    settings, member = process.graph.components.jobs, process.member
    if settings is None:
        raise FatalError("components.jobs: is missing")
    try:
        store = await Store.open(process.bus, process.subjects, settings)
    except BusError as error:
        raise FatalError(f"components.jobs: the store cannot be opened: {error}") from error
    metrics = Metrics(member.registry)
    service = JobService(store, settings.lease_s, metrics)
    dispatch = Dispatch(store, Book(settings.lease_s), settings.max_attempts, metrics, service, process.tasks)
    service.dispatch = dispatch
    member.registry.register(Watched(dispatch))
    watching = process.tasks.create_task(dispatch.watch())
    limits = Limits(settings.max_body_bytes, process.graph.http.client_stall_timeout_s)
    submitters = Submitters(store, service, metrics, settings.hold_timeout_s)
    routes = Routes(service, submitters, store, member, limits, settings.public_url)
    try:
        runner = await listen(routes.make(), Address(settings.http_host, settings.http_port), _DRAIN_S)
    except ListenError as error:
        raise FatalError(f"components.jobs.http_{error}") from error
    member.become(ProcessState.READY, f"http port {settings.http_port}")
    await member.stopping.wait()
    member.become(ProcessState.DRAINING)
    watching.cancel()
    service.close()
    await runner.cleanup()
    await dispatch.close()


if __name__ == "__main__":
    sys.exit(run("jobs", serve))
