"""Which workers there are, and which one is least busy. Pure: statuses in, choices out; time is an argument.

Knows what workers tell about themselves, and what this process has given them since; not what they hold in their caches.
"""

import math
from dataclasses import dataclass

from components.wire.process import ProcessState, ProcessStatus, WorkerRole, WorkerStatus

_LAST_WORDS = frozenset({ProcessState.STOPPED, ProcessState.FAILED})
_GONE = frozenset({ProcessState.STARTING, ProcessState.STOPPED, ProcessState.FAILED})


@dataclass(eq=False)
class Worker:
    """One worker, as last heard of.

    Attributes:
        name: its name in the graph.
        incarnation: of its process.
        offer: what it told about itself.
        accepting: whether it takes new requests.
        heard_s: when, on the caller's clock.
        progress_s: when its counts of tokens were last seen to grow.
        inflight: sequences this process has there now.
        inflight_when_heard: the same when it told its load, which then counted them.
        chosen: the number of the choice that took it last.
    """

    name: str
    incarnation: str
    offer: WorkerStatus
    accepting: bool
    heard_s: float
    inflight: int = 0
    inflight_when_heard: int = 0
    chosen: int = 0
    progress_s: float = 0.0

    @property
    def busy(self) -> int:
        """Requests it has, as far as known: what it told, corrected by what this process did since."""
        load = self.offer.load
        told = load.running_requests + load.waiting_requests
        return max(told + self.inflight - self.inflight_when_heard, self.inflight)


class Fleet:
    """All workers of one model that live."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._workers: dict[str, Worker] = {}
        self._choices = 0
        self.processes: dict[str, float] = {}
        self.ever_ready = False

    def hear(self, status: ProcessStatus, now_s: float) -> list[Worker]:
        """Take in a status; return the workers that are known to be gone by it.

        The last word of a former life may come after its successor's first, and says nothing of the successor.
        """
        known = self._workers.get(status.name)
        restarted = known is not None and known.incarnation != status.incarnation
        if restarted and status.state in _LAST_WORDS:
            return []
        self._hear_process(status, now_s)
        ended = known is not None and status.state in _GONE
        gone = [self._workers.pop(status.name)] if restarted or ended else []
        offer = status.worker
        ours = offer is not None and offer.model == self._model and offer.role is WorkerRole.DECODE
        if offer is not None and ours and status.state not in _GONE:
            self._hear_worker(status, offer, now_s)
        return gone

    def _hear_process(self, status: ProcessStatus, now_s: float) -> None:
        if status.state in _LAST_WORDS:
            self.processes.pop(status.name, None)
        else:
            self.processes[status.name] = now_s

    def _hear_worker(self, status: ProcessStatus, offer: WorkerStatus, now_s: float) -> None:
        accepting = status.state is ProcessState.READY
        worker = self._workers.get(status.name)
        if worker is None:
            worker = Worker(status.name, status.incarnation, offer, accepting, now_s)
            self._workers[status.name] = worker
        if _tokens(offer) != _tokens(worker.offer):
            worker.progress_s = now_s
        worker.offer, worker.accepting, worker.heard_s = offer, accepting, now_s
        worker.inflight_when_heard = worker.inflight
        self.ever_ready = self.ever_ready or accepting

    def expire(self, now_s: float, silent_s: float, late_s: float = 0.0) -> list[Worker]:
        """Forget the workers not heard of for `silent_s` seconds, and return them.

        Args:
            now_s: the time.
            silent_s: how long silence may last.
            late_s: how long this process itself was held up just now; it heard nobody then, so that is no silence.
        """
        if late_s > 0.0:
            self._excuse(now_s, late_s)
        gone = [worker for worker in self._workers.values() if now_s - worker.heard_s > silent_s]
        for worker in gone:
            del self._workers[worker.name]
        for name in [name for name, heard_s in self.processes.items() if now_s - heard_s > silent_s]:
            del self.processes[name]
        return gone

    def excuse(self, now_s: float) -> None:
        """Count everybody as heard of now: the bus was away, so their silence says nothing."""
        self._excuse(now_s, math.inf)

    def _excuse(self, now_s: float, deaf_s: float) -> None:
        """Count the last `deaf_s` seconds as no silence of anybody's."""
        for worker in self._workers.values():
            worker.heard_s = min(now_s, worker.heard_s + deaf_s)
        for name, heard_s in self.processes.items():
            self.processes[name] = min(now_s, heard_s + deaf_s)

    def remove(self, worker: Worker) -> None:
        """Choose a worker that does not listen no more; its next status brings it back, its silence ends it."""
        worker.accepting = False

    def choose(self, avoid: frozenset[str] = frozenset()) -> Worker | None:
        """Return the least busy worker, of equals the one longest not chosen; one of `avoid` only when there is no other."""
        accepting = [worker for worker in self._workers.values() if worker.accepting]
        candidates = [worker for worker in accepting if worker.name not in avoid] or accepting
        if not candidates:
            return None
        worker = min(candidates, key=lambda worker: (worker.busy, worker.chosen))
        self._choices += 1
        worker.chosen = self._choices
        return worker

    def accepting(self, name: str) -> Worker | None:
        """Return the worker of this name if it takes new requests."""
        worker = self._workers.get(name)
        return worker if worker is not None and worker.accepting else None

    def ready(self) -> list[Worker]:
        """Return the workers that take new requests."""
        return [worker for worker in self._workers.values() if worker.accepting]

    def context_tokens(self) -> int | None:
        """Return the longest prompt plus output that every ready worker takes; None when there is none."""
        return min((worker.offer.max_model_len for worker in self.ready()), default=None)


def _tokens(offer: WorkerStatus) -> tuple[int, int]:
    """Return what grows while an engine works, on whatever request."""
    return offer.load.prompt_tokens, offer.load.output_tokens
