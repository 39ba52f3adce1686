"""What a supervisor tells the world: the graph's state, to its folder and to whoever watches. Knows no processes."""

import logging
import os
import time
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from components.graph.schema import Graph, Http
from components.launch.state import GraphPhase, GraphState, ProcessRecord, StateFolder, created_s
from components.launch.watch import Watch

log = logging.getLogger(__name__)


def endpoint(http: Http) -> str:
    """Return the base URL at which this machine reaches the endpoint, such as ``http://127.0.0.1:8181``."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    return f"{'https' if http.tls_cert_file else 'http'}://{f'[{host}]' if ':' in host else host}:{http.port}"


def _serves_http(graph: Graph) -> bool:
    return bool(graph.components.processor and graph.components.processor.replicas)


class Reporter:
    """Writes the state of one run whenever it changed."""

    def __init__(self, graph: Graph, run: str, folder: StateFolder, on_change: Callable[[GraphState], None]) -> None:
        self._folder = folder
        self._on_change = on_change
        self._started_s = time.monotonic()
        self._last = GraphState(
            graph=graph.part,
            run=run,
            supervisor_pid=os.getpid(),
            supervisor_created_s=created_s(os.getpid()) or 0.0,
            phase=GraphPhase.STARTING,
            url=endpoint(graph.http) if _serves_http(graph) else "",
            model=graph.model_name,
            started_unix_s=time.time(),
            stop_timeout_s=graph.supervision.stop_timeout_s,
        )

    def tell(self, phase: GraphPhase, failure: str, watches: Iterable[Watch]) -> None:
        """Tell how things stand now, unless that was told already."""
        ready_after_s = self._last.ready_after_s
        if phase is GraphPhase.READY and ready_after_s is None:
            ready_after_s = time.monotonic() - self._started_s
        processes = tuple(self._record(watch) for watch in watches)
        state = replace(self._last, phase=phase, ready_after_s=ready_after_s, failure=failure, processes=processes)
        if state != self._last:
            self._last = state
            try:
                self._folder.write(state)
            except OSError as error:  # a full disk is no reason to stop serving
                log.warning("cannot write the state", extra={"error": str(error)})
            self._on_change(state)

    def _record(self, watch: Watch) -> ProcessRecord:
        return ProcessRecord(
            name=watch.spec.name,
            component=watch.spec.component,
            phase=watch.phase,
            detail=watch.detail,
            pid=watch.pid,
            started_unix_s=self._last.started_unix_s + watch.started_s - self._started_s if watch.pid else None,
            ready_after_s=watch.ready_after_s,
            restarts=watch.restarts,
            last_death=watch.last_death,
            gpus=watch.spec.gpus,
            worker=watch.worker,
        )
