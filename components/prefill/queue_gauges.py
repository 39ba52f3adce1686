"""How the prefill queue stands, as gauges that every prefill worker of a host shows alike."""

import asyncio
import logging

from prometheus_client import CollectorRegistry, Gauge

from components.bus.client import BusError
from components.bus.queue_state import QueueState
from components.bus.work_queue import WorkQueue
from components.wire.prefill import PrefillJob

log = logging.getLogger(__name__)

LOOK_S = 1.0


class QueueGauges:
    """One lane's; without samples while nobody can see how it stands.

    Args:
        lane: of the queue.
        registry: where they are shown.
    """

    def __init__(self, lane: str, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"penstock_prefill_queue_{name}", text, ["lane"], registry=registry)

        self._lane = lane
        self._waiting = gauge("waiting", "Prefill jobs that nobody has taken.")
        self._under_way = gauge("under_way", "Prefill jobs taken and not ended, or about to be delivered again.")
        self._oldest_age_s = gauge("oldest_age_seconds", "Age of the oldest prefill job of the whole queue.")
        self._dead = gauge("dead_letters", "Prefill jobs of the whole queue that were given up; see penstock queue dead.")

    def show(self, state: QueueState, dead_letters: int) -> None:
        """Show how the lane stands."""
        self._waiting.labels(self._lane).set(state.waiting)
        self._under_way.labels(self._lane).set(state.under_way)
        self._oldest_age_s.labels(self._lane).set(state.oldest_age_s)
        self._dead.labels(self._lane).set(dead_letters)

    def hide(self) -> None:
        """Show nothing: an old figure would pass for the present."""
        for gauge in (self._waiting, self._under_way, self._oldest_age_s, self._dead):
            gauge.clear()

    async def watch(self, queue: WorkQueue[PrefillJob], every_s: float = LOOK_S) -> None:
        """Look at `queue` every so many seconds, for ever; a look is three small requests to the NATS server."""
        while True:
            try:
                self.show(await queue.ask_state(), await queue.dead.count())
            except BusError as error:
                log.debug("cannot see the queue", extra={"error": str(error)})
                self.hide()
            await asyncio.sleep(every_s)
