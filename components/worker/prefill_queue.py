"""The queue between decode and prefill workers: one a host, because LMCache shares KV among the engines of one host."""

from components.bus.client import Bus
from components.bus.work_queue import QueueLimits, WorkQueue
from components.graph.schema import Graph
from components.wire.prefill import PrefillJob
from components.wire.subjects import Subjects

QUEUE = "prefill"
_TIMEOUT_S = 1.0
"""A put that takes longer is given up: the prompt is computed here by then."""


async def open_prefill_queue(
    bus: Bus, subjects: Subjects, graph: Graph, host_lane: str | None = None
) -> WorkQueue[PrefillJob]:
    """Return the queue of this host, made when it is not there.

    Args:
        bus: the connection.
        subjects: of the graph.
        graph: says how the queue treats its jobs.
        host_lane: the part of another host, by its name; default: this one's.

    Raises:
        BusError: JetStream is away, or refuses.
    """
    settings = graph.components.prefill
    if settings is None:
        raise ValueError("the graph has no prefill workers")
    limits = QueueLimits(
        lease_s=settings.ack_wait_s,
        max_deliver=settings.max_deliveries,
        max_age_s=graph.http.request_timeout_s,
        max_jobs=settings.max_queue_jobs,
    )
    here = host_lane or lane(graph)
    return await WorkQueue.open(bus, subjects, QUEUE, PrefillJob, limits, lane=here, timeout_s=_TIMEOUT_S)


def lane(graph: Graph) -> str:
    """Return the name of this host's part of the queue."""
    return graph.host or "all"
