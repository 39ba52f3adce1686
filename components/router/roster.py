"""Who is there, by what processes tell of themselves: workers, those that drain, other routers. Pure; told the time."""

from dataclasses import dataclass

from components.wire.process import ProcessState, ProcessStatus, WorkerRole, WorkerStatus

_LAST_WORDS = frozenset({ProcessState.STOPPED, ProcessState.FAILED})
_GONE = frozenset({ProcessState.STARTING, ProcessState.STOPPED, ProcessState.FAILED})


@dataclass(slots=True)
class Present:
    """A worker that is there.

    Attributes:
        incarnation: of its process.
        state: ready or draining.
        offer: what it last told.
        heard_s: when.
    """

    incarnation: str
    state: ProcessState
    offer: WorkerStatus
    heard_s: float


class Roster:
    """The workers of one model, and the other routers.

    Attributes:
        workers: candidates, by name.
        draining: of these, those that take nothing new.
        prefill_workers: no candidates, but they know what is in LMCache.
    """

    def __init__(self, model: str, name: str, silence_timeout_s: float) -> None:
        """Know nobody.

        Args:
            model: workers of other models are not listed.
            name: this router's, which does not count as another one.
            silence_timeout_s: a process not heard of for so long is gone.
        """
        self._model = model
        self._name = name
        self._silence_timeout_s = silence_timeout_s
        self._peers: dict[str, float] = {}
        self.workers: dict[str, Present] = {}
        self.draining: set[str] = set()
        self.prefill_workers: dict[str, Present] = {}

    @property
    def everybody(self) -> dict[str, Present]:
        """All workers, whatever they take."""
        return self.workers | self.prefill_workers

    @property
    def alone(self) -> bool:
        """Whether there is no other router."""
        return not self._peers

    def hear(self, status: ProcessStatus, now_s: float) -> bool:
        """Take in a status.

        The last word of a former life may come after its successor's first, and says nothing of the successor.

        Returns:
            Whether a worker is gone by it.
        """
        known = self.workers.get(status.name) or self.prefill_workers.get(status.name)
        if known and known.incarnation != status.incarnation and status.state in _LAST_WORDS:
            return False
        if status.component == "router" and status.name != self._name:
            self._peers[status.name] = now_s
        if status.state in _GONE:
            self._peers.pop(status.name, None)
            return self._drop(status.name)
        offer = status.worker
        if offer is not None and offer.model == self._model:
            present = Present(status.incarnation, status.state, offer, now_s)
            if offer.role is WorkerRole.PREFILL:
                self.prefill_workers[status.name] = present
            else:
                self.workers[status.name] = present
                (self.draining.add if status.state is ProcessState.DRAINING else self.draining.discard)(status.name)
        return False

    def expire(self, now_s: float) -> list[str]:
        """Drop who has been silent for too long, and return the workers among them."""
        for name in [name for name, heard_s in self._peers.items() if now_s - heard_s > self._silence_timeout_s]:
            del self._peers[name]
        gone = [name for name, present in self.everybody.items() if now_s - present.heard_s > self._silence_timeout_s]
        for name in gone:
            self._drop(name)
        return gone

    def excuse(self, now_s: float) -> None:
        """Count everybody as heard of now: the bus was away, so their silence says nothing."""
        for present in self.everybody.values():
            present.heard_s = now_s
        for name in self._peers:
            self._peers[name] = now_s

    def _drop(self, name: str) -> bool:
        self.draining.discard(name)
        return (self.workers.pop(name, None) or self.prefill_workers.pop(name, None)) is not None
