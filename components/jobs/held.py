"""A job in the queue server's hands: taken from the store, or transient and nowhere else."""

import asyncio
from dataclasses import dataclass

from components.bus.delivery import Delivery
from components.jobs.book import Assignment
from components.jobs.frames import Mode
from components.wire.errors import PenstockError
from components.wire.jobs import Job


@dataclass(eq=False, frozen=True)
class Call:
    """The caller of a transient job, who waits for its outcome.

    Attributes:
        answer: the result, or why there is none.
        stream: whether chunks are wanted as they come.
        chunks: OpenAI chunks, None after the last.
    """

    stream: bool
    answer: "asyncio.Future[bytes]"
    chunks: "asyncio.Queue[bytes | None]"

    def settle(self, outcome: bytes | PenstockError) -> None:
        """Tell the caller how it ended, once."""
        if self.answer.done():
            return
        if isinstance(outcome, bytes):
            self.answer.set_result(outcome)
        else:
            self.answer.set_exception(outcome)
        self.chunks.put_nowait(None)


@dataclass(eq=False)
class Held:
    """A job that waits for a worker, is with one, or is being recorded.

    Attributes:
        job: as submitted.
        mode: persisted jobs lie in the store until they are finished; transient ones die with this process or their caller.
        number: of a persisted one in its queue; 0 for a transient one.
        attempts: how often it was given to a worker, this time included.
        delivery: the store's lease on a persisted one; None when it was adopted from a worker and not delivered to us yet.
        assignment: who has it; None while it waits or is being recorded.
        outcome_fence: under which its outcome came, which is being recorded and cannot change any more; empty before.
        call: of a transient one.
        begun: chunks were passed on; another worker cannot continue them.
    """

    job: Job
    mode: Mode
    number: int = 0
    attempts: int = 1
    delivery: Delivery[Job] | None = None
    assignment: Assignment | None = None
    outcome_fence: str = ""
    call: Call | None = None
    begun: bool = False

    @property
    def waits(self) -> bool:
        """Whether it waits for a worker."""
        return self.assignment is None and not self.outcome_fence

    def settle(self, outcome: bytes | PenstockError) -> None:
        """Tell the caller of a transient job how it ended, once."""
        if self.call is not None:
            self.call.settle(outcome)
