"""How an engine's core tells the controller how it goes: a connection of its own, used from any thread.

Knows no vLLM. Reports are never worth a failure: a controller that is gone takes this process along anyway.
"""

import contextlib
import logging
import os
import threading
from pathlib import Path

from components.worker_controller.frames import Frames, StreamClosedError
from components.worker_controller.messages import MAX_MESSAGE_BYTES, EngineJob, Failed, Hello, Message, encode


class Report:
    """Tells the controller about the engine of `job`, as its part ``core``."""

    def __init__(self, job: EngineJob) -> None:
        self._frames = Frames.connect(Path(job.controller), MAX_MESSAGE_BYTES)
        self._lock = threading.Lock()
        self.tell(Hello(job.key, "core", os.getpid()))

    def tell(self, message: Message) -> None:
        """Send `message`, if the controller is still there."""
        with self._lock, contextlib.suppress(StreamClosedError):
            self._frames.send(encode(message))


class ErrorReporter(logging.Handler):
    """Hands the first exception that vLLM logs to the controller: vLLM's own processes say no more than that one failed."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.ERROR)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Report `record` if it tells of an exception."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._report.tell(Failed(one_line(error)))


def one_line(error: BaseException) -> str:
    """Return up to 600 characters of what `error` says, with its type."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
