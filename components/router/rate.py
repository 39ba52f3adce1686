"""How long one unit of work takes on each worker, learned from what was observed. Robust: weighted medians, no averages.

A sample weighs as much as the work it saw, so that fixed overheads of small requests do not pose as speed. All workers go by
the fleet's rate; one that was seen to differ from it by a factor of two or more, by its own: smaller differences are noise,
and would send all idle traffic to whoever was lucky. An untried fleet goes by the start value.

Who was slow once gets no more requests, and so could never show that it is slow no longer: an engine that compiled a kernel
at its first prompts would stay idle for ever. So what a worker alone has shown is forgotten once only others are observed.
"""

from bisect import bisect_left, insort
from collections import deque

_WORKER_SAMPLES = 32
_FLEET_SAMPLES = 128
_ENOUGH = 4
_CLEAR_FACTOR = 2.0
_FORGOTTEN_AFTER = 64  # observations a worker of the fleet; four requests then show again how slow it is
_SLOWER_OR_FASTER = 1000.0  # than the start value: a sample beyond is a broken clock or a stalled client


class Rate:
    """Seconds a unit, by worker.

    Attributes:
        usual_s: how long one unit takes on a worker that is not clearly different.
        own_s: and on those that are.
    """

    def __init__(self, start_s: float) -> None:
        """Begin without observations.

        Args:
            start_s: seconds a unit until something was observed.
        """
        self.usual_s = start_s
        self.own_s: dict[str, float] = {}
        self._start_s = start_s
        self._fleet = _Samples(_FLEET_SAMPLES)
        self._workers: dict[str, _Samples] = {}
        self._observed = 0
        self._last: dict[str, int] = {}  # how many observations there were when a worker was last observed

    def observe(self, worker: str, units: float, seconds: float) -> None:
        """Learn that `worker` took `seconds` for `units` of work; impossible values are ignored."""
        if units <= 0 or not self._start_s / _SLOWER_OR_FASTER <= seconds / units <= self._start_s * _SLOWER_OR_FASTER:
            return
        self._observed += 1
        self._last[worker] = self._observed
        if self._observed % _FORGOTTEN_AFTER == 0:
            self._forget_unobserved()
        self._fleet.add(units, seconds / units)
        self._workers.setdefault(worker, _Samples(_WORKER_SAMPLES)).add(units, seconds / units)
        usual_s = self._fleet.median if self._fleet.count >= _ENOUGH else self._start_s
        if usual_s != self.usual_s:
            self.usual_s = usual_s
            self.own_s = {name: mine.median for name, mine in self._workers.items() if self._differs(mine)}
        elif self._differs(mine := self._workers[worker]):
            self.own_s[worker] = mine.median
        else:
            self.own_s.pop(worker, None)

    def seconds(self, worker: str) -> float:
        """Return how long one unit takes on `worker`, in seconds."""
        return self.own_s.get(worker, self.usual_s)

    def forget(self, worker: str) -> None:
        """Drop what `worker` alone has shown."""
        self._workers.pop(worker, None)
        self._last.pop(worker, None)
        self.own_s.pop(worker, None)

    def _forget_unobserved(self) -> None:
        """Have those that differ tried again who have had no request for long."""
        since = self._observed - _FORGOTTEN_AFTER * len(self._workers)
        for worker in [name for name in self.own_s if self._last[name] <= since]:
            self.forget(worker)

    def _differs(self, mine: "_Samples") -> bool:
        return mine.count >= _ENOUGH and not (self.usual_s / _CLEAR_FACTOR < mine.median < self.usual_s * _CLEAR_FACTOR)


class _Samples:
    """The last samples, and their median weighted by work."""

    def __init__(self, keep: int) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=keep)  # (seconds a unit, units)
        self._sorted: list[tuple[float, float]] = []
        self.median = 0.0

    @property
    def count(self) -> int:
        return len(self._samples)

    def add(self, units: float, unit_s: float) -> None:
        if len(self._samples) == self._samples.maxlen:
            del self._sorted[bisect_left(self._sorted, self._samples[0])]
        self._samples.append((unit_s, units))
        insort(self._sorted, (unit_s, units))
        half = sum(weight for _, weight in self._samples) / 2
        for unit_s, weight in self._sorted:
            half -= weight
            if half <= 0:
                self.median = unit_s
                return
