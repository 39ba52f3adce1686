"""Asks the router where a prompt shall go, tells it how that went, and does without it while it is away.

Knows the bus and the router's messages; `generation` says when. While the router is away, one request a second asks it
again; the others do not wait.
"""

import asyncio
import logging
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from components.bus.client import Bus, BusError
from components.wire.errors import PenstockError
from components.wire.routing import RouteEvent, RouteNotice, RouteNotices, RouteReply, RouteRequest
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

FALLBACK = "fallback"
_TRY_AGAIN_S = 1.0
_MOST_NOTICES = 256  # in one message
_GATHER_S = 0.01  # what is told so soon after the last notices goes out with the next ones
_ASKING_S = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1)


class Booking:
    """A prompt's place in the router's books; ends once, when the last of its sequences has ended.

    Attributes:
        reply: the router's choice.
    """

    def __init__(self, router: "Router", request_id: str, reply: RouteReply) -> None:
        self.reply = reply
        self._router = router
        self._request_id = request_id
        self._chosen_s = time.monotonic()
        self._holders = 1
        self._begun = False

    def hold(self) -> None:
        """One more sequence belongs to it; call `finish` once more."""
        self._holders += 1

    def first_token(self, cached_tokens: int | None) -> None:
        """The prefill is over; only the first call counts."""
        if self._begun or not self._holders:
            return
        self._begun = True
        ttft_s = time.monotonic() - self._chosen_s
        self._router.tell(self._notice(RouteEvent.FIRST_TOKEN, ttft_s, cached_tokens))

    def finish(self) -> None:
        """One that held it has ended, well or not."""
        self._holders -= 1
        if not self._holders:
            self._router.tell(self._notice(RouteEvent.FINISHED))

    def _notice(self, event: RouteEvent, ttft_s: float | None = None, cached_tokens: int | None = None) -> RouteNotice:
        worker = self.reply.chosen.worker
        return RouteNotice(self._request_id, event, worker, ttft_s=ttft_s, cached_tokens=cached_tokens)


class Router:
    """The router, as one processor sees it."""

    def __init__(self, bus: Bus, subjects: Subjects, timeout_s: float, registry: CollectorRegistry) -> None:
        """Ask nobody yet.

        Args:
            bus: the connection.
            subjects: of the graph.
            timeout_s: a router silent for so long counts as away.
            registry: for the metrics.
        """
        self._bus = bus
        self._subjects = subjects
        self._timeout_s = timeout_s
        self._away = False
        self._ask_again_s = 0.0
        self._notices: list[RouteNotice] = []
        self._notices_wait = asyncio.Event()
        self._asked = Counter("penstock_routes", "Prompts routed, by who chose.", ["by"], registry=registry)
        self._gone = Gauge("penstock_router_away", "1 while no router answers.", registry=registry)
        self._seconds = Histogram(
            "penstock_route_seconds", "From asking the router to its answer.", buckets=_ASKING_S, registry=registry
        )

    async def choose(self, request: RouteRequest) -> Booking | None:
        """Return the router's choice; None when it is away or knows no worker."""
        now_s = time.monotonic()
        if not self._bus.connected or (self._away and now_s < self._ask_again_s):
            self._asked.labels(FALLBACK).inc()
            return None
        self._ask_again_s = now_s + _TRY_AGAIN_S
        try:
            reply = await self._bus.request(self._subjects.route(), request, RouteReply, self._timeout_s)
        except BusError as error:
            self._lose(str(error))
            self._withdraw(request)
        except PenstockError as error:
            self._find()
            log.debug("the router does not choose", extra={"error": error.message})
        except asyncio.CancelledError:
            self._withdraw(request)
            raise
        else:
            self._find()
            self._seconds.observe(time.monotonic() - now_s)
            self._asked.labels("router").inc()
            return Booking(self, request.request_id, reply)
        self._asked.labels(FALLBACK).inc()
        return None

    def tell(self, notice: RouteNotice) -> None:
        """Have all routers told; never waits."""
        self._notices.append(notice)
        self._notices_wait.set()

    async def send_notices(self) -> None:
        """Tell the routers what there is to tell, for ever."""
        while True:
            await self._notices_wait.wait()
            await self.flush()
            await asyncio.sleep(_GATHER_S)

    async def flush(self) -> None:
        """Tell the routers now; what is lost meanwhile, their deadlines and the workers' word make good."""
        self._notices_wait.clear()
        notices, self._notices = self._notices, []
        for start in range(0, len(notices), _MOST_NOTICES):
            try:
                await self._bus.publish(self._subjects.route_notices(), RouteNotices(notices[start : start + _MOST_NOTICES]))
            except BusError as error:
                log.debug("the routers do not hear of requests", extra={"error": str(error)})

    def _withdraw(self, request: RouteRequest) -> None:
        """Take back a question whose answer nobody waits for; it may have been booked."""
        self.tell(RouteNotice(request.request_id, RouteEvent.FINISHED, ""))

    def _lose(self, why: str) -> None:
        if not self._away:
            log.warning("the router is away; workers are chosen by load", extra={"why": why})
        self._away = True
        self._gone.set(1)

    def _find(self) -> None:
        if self._away:
            log.info("the router is back")
        self._away = False
        self._gone.set(0)


def route_headers(replies: list[RouteReply | None]) -> dict[str, str]:
    """Return the response headers that tell how each prompt was routed; None stands for a router that was away."""
    if not replies:
        return {}
    headers = {"x-penstock-policy": ",".join(reply.policy if reply else FALLBACK for reply in replies)}
    routed = [reply.chosen for reply in replies if reply]
    if routed:
        headers["x-penstock-overlap-blocks"] = ",".join(str(chosen.overlap_blocks) for chosen in routed)
        headers["x-penstock-cost-ms"] = ",".join(f"{chosen.cost_s * 1000:.3f}" for chosen in routed)
    return headers
