"""Which prefill workers there are, by what they tell of themselves. Pure; told the time."""

from components.wire.process import ProcessState, ProcessStatus, WorkerRole


class PrefillCrew:
    """The prefill workers that share KV with one decode worker."""

    def __init__(self, model: str, store: str, silence_timeout_s: float) -> None:
        """Know nobody.

        Args:
            model: the one they must serve.
            store: the LMCache server they must share.
            silence_timeout_s: one not heard of for so long is gone; the jobs it had are computed here.
        """
        self._silence_timeout_s = silence_timeout_s
        self._model = model
        self._store = store
        self._heard_s: dict[str, float] = {}
        self._ready: set[str] = set()

    def hear(self, status: ProcessStatus, now_s: float) -> None:
        """Take in a status."""
        offer = status.worker
        ours = (
            offer is not None
            and offer.role is WorkerRole.PREFILL
            and (offer.model, offer.store) == (self._model, self._store)
        )
        if ours and status.state in {ProcessState.READY, ProcessState.DRAINING}:
            self._heard_s[status.name] = now_s
            (self._ready.add if status.state is ProcessState.READY else self._ready.discard)(status.name)
        elif status.name in self._heard_s:
            del self._heard_s[status.name]
            self._ready.discard(status.name)

    def ready(self, now_s: float) -> int:
        """Return how many take jobs now."""
        return sum(self.lives(name, now_s) for name in self._ready)

    def lives(self, name: str, now_s: float) -> bool:
        """Return whether a worker was heard of lately."""
        return now_s - self._heard_s.get(name, float("-inf")) < self._silence_timeout_s
