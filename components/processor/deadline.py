"""By when a request must be answered: one moment for everything that is waited for on its behalf."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from components.wire.errors import DeadlineExceededError

T = TypeVar("T")


class Deadline:
    """The moment at which nobody waits for a request any more."""

    def __init__(self, received_s: float, timeout_s: float) -> None:
        """Set it.

        Args:
            received_s: when the request came, on the monotonic clock.
            timeout_s: how long its whole answer may take.
        """
        self._until_s = received_s + timeout_s
        self._timeout_s = timeout_s

    async def within(self, work: Awaitable[T]) -> T:
        """Return the result of `work`, which is cancelled at the deadline.

        A generator must wait through this rather than yield inside a timeout: the time would end whoever reads it.

        Raises:
            DeadlineExceededError: it was not done in time.
        """
        try:
            async with asyncio.timeout(self._until_s - time.monotonic()):
                return await work
        except TimeoutError:
            raise DeadlineExceededError(f"the answer took longer than {self._timeout_s:g} s") from None
