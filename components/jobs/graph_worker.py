"""A job worker as a process of a graph: runs the jobs of the graph's queue against the graph's own endpoint."""

import asyncio
import sys

from components.bus.process import FatalError, Process, run
from components.graph.keys import ApiKeys
from components.graph.schema import Graph
from components.jobs.worker import WorkerFailedError, work
from components.jobs.worker_settings import WorkerSettings
from components.wire.process import ProcessState

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


async def serve(process: Process) -> None:
    """Run one job worker until it is told to stop.

    Raises:
        FatalError: the graph has no jobs, or the queue refuses the worker.
    """
    member, working = process.member, asyncio.Event()
    settings = settings_in(process.graph, member.name)

    async def tell() -> None:
        await working.wait()
        member.become(ProcessState.READY, f"{settings.max_jobs} jobs at a time")

    telling = process.tasks.create_task(tell())
    try:
        await work(settings, member.stopping, working)
    except WorkerFailedError as error:
        raise FatalError(str(error)) from error
    finally:
        telling.cancel()
    member.become(ProcessState.DRAINING)


def settings_in(graph: Graph, name: str) -> WorkerSettings:
    """Return the settings of the job worker `name` of `graph`.

    Raises:
        FatalError: the graph has no jobs.
    """
    jobs = graph.components.jobs
    if jobs is None:
        raise FatalError("components.jobs: is missing")
    keys, workers_keys = ApiKeys.from_environment(), ApiKeys.of_workers()
    scheme = "https" if graph.http.tls_cert_file else "http"
    return WorkerSettings(
        ws_url=f"ws://{_address(jobs.http_host)}:{jobs.http_port}",
        config_id=jobs.config_id,
        model=graph.model_name,
        worker_id=f"{graph.part}.{name}",
        api_url=f"http://{_address(jobs.http_host)}:{jobs.http_port}",
        api_token=workers_keys.first,
        queue_id=graph.name,
        max_jobs=jobs.worker_capacity,
        lease_s=jobs.lease_s,
        renew_after_s=0.8 * jobs.lease_s,
        grace_s=max(1.0, graph.supervision.stop_timeout_s / 2),
        engine_url=f"{scheme}://{_address(graph.http.host)}:{graph.http.port}",
        engine_key=keys.first,
        ready_path="/ready",
        startup_timeout_s=graph.supervision.start_timeout_s,
        pause_above=max(64, 4 * jobs.worker_capacity),
        idle_timeout_s=graph.http.request_timeout_s,
    )


def _address(host: str) -> str:
    return _ANYWHERE.get(host, f"[{host}]" if ":" in host else host)


if __name__ == "__main__":
    sys.exit(run("job-worker", serve))
