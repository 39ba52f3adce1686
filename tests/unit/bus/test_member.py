"""What a member says of itself."""

import os

from nats.aio.client import Client
from prometheus_client import Counter

from components.bus.client import Bus
from components.bus.member import Member
from components.wire.process import MetricFamily, ProcessState, WorkerStatus
from components.wire.subjects import Subjects


def make_member() -> Member:
    """Return a member that is connected to nothing."""
    return Member(Bus(Client()), Subjects("g"), "decode-0", "decode")


def test_a_new_member_is_starting() -> None:
    """Each process is another incarnation."""
    member = make_member()
    status = member.status()
    assert (status.name, status.component, status.pid) == ("decode-0", "decode", os.getpid())
    assert (status.state, status.detail, status.worker) == (ProcessState.STARTING, "", None)
    assert status.incarnation == member.incarnation != make_member().incarnation


def test_status_tells_the_latest_state_and_offer() -> None:
    """What it offers is asked for at each status."""
    member, told = make_member(), []
    member.become(ProcessState.READY, "serving")

    def offer() -> WorkerStatus:
        told.append(WorkerStatus("demo", 4096, 32, kv_blocks=len(told)))
        return told[-1]

    member.offer(offer)
    assert (member.status().state, member.status().detail) == (ProcessState.READY, "serving")
    assert member.status().worker == WorkerStatus("demo", 4096, 32, kv_blocks=2)


def test_metrics_are_the_registry_and_what_is_exposed() -> None:
    """Under the member's name."""
    member = make_member()
    Counter("answers", "Answers.", registry=member.registry).inc(3)
    member.expose(lambda: [MetricFamily("engine", "gauge", "Of the engine.", [])])
    metrics = member.metrics()
    values = {sample.name: sample.value for family in metrics.families for sample in family.samples}
    assert metrics.process == "decode-0"
    assert values["answers_total"] == 3
    assert metrics.families[-1].name == "engine"
