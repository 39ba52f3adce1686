"""Structured logs, one line an event, on standard error; the supervisor keeps each process's lines in a file."""

import json
import logging
import sys
import time
import traceback
from pathlib import Path
from typing import Literal, TextIO

# What a record has without us; `vllm_process_name` is put on every record of a process that has imported vLLM.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "vllm_process_name"}


class _TextFormatter(logging.Formatter):
    """``2026-11-21T07:40:00.123Z decode-0 info request accepted worker=decode-1``."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_utc(record.created)} {self._process} {record.levelname.lower()} {record.getMessage()}"
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{line} {fields}".rstrip() + trace


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, process, level, logger, message, then the event's own fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": _utc(record.created),
            "process": self._process,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def setup_logging(process: str, level: str, style: Literal["text", "json"], output: TextIO | None = None) -> None:
    """Send this process's logs to standard error, or to `output`.

    Args:
        process: its name in the graph, such as ``decode-0``.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        style: ``text`` for people, ``json`` for machines.
        output: an open text file.
    """
    handler = logging.StreamHandler(output or sys.stderr)
    handler.setFormatter(_JsonFormatter(process) if style == "json" else _TextFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def trail(error: BaseException) -> str:
    """Return an exception's type and where it came from, without its text, which may hold a prompt.

    Such as ``IndexError at service.py:128 _run > sim.py:90 generate``.
    """
    frames = traceback.extract_tb(error.__traceback__)
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__} at {places}" if places else type(error).__name__


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what the caller passed as ``extra``."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
