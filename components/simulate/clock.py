"""Virtual time: a list of what is due, in order. Knows nothing of what happens then."""

import heapq
from collections.abc import Callable


class Clock:
    """Does what is due, in order of time; of equals, what was asked for first.

    Attributes:
        now_s: the time, in seconds since the start; it never goes back.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do `action` at `time_s`.

        Raises:
            ValueError: that is over.
        """
        if time_s < self.now_s:
            raise ValueError(f"{time_s} s is over: it is {self.now_s} s")
        self._asked += 1
        heapq.heappush(self._due, (time_s, self._asked, action))

    def run(self, done: Callable[[], bool]) -> None:
        """Let time pass until `done`.

        Raises:
            IndexError: nothing is due any more, and it is not done.
        """
        due, pop = self._due, heapq.heappop
        while not done():
            self.now_s, _, action = pop(due)
            action()
