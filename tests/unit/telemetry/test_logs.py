"""One line an event, for people or for machines."""

import json
import logging

import pytest

from components.telemetry.logs import setup_logging, trail


@pytest.fixture(autouse=True)
def _restore_root_logger() -> object:
    """Leave logging as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_text_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Time, process, level, message, fields."""
    setup_logging("decode-0", "info", "text")
    logging.getLogger("x").info("accepted", extra={"worker": "w1"})
    logging.getLogger("x").debug("too fine")
    line = capsys.readouterr().err.strip()
    assert line.endswith("Z decode-0 info accepted worker=w1")
    assert "\n" not in line


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, an exception inside it."""
    setup_logging("decode-0", "debug", "json")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("x").exception("failed", extra={"count": 3})
    event = json.loads(capsys.readouterr().err)
    assert (event["process"], event["level"], event["message"], event["count"]) == ("decode-0", "error", "failed", 3)
    assert "ValueError: no" in event["exception"]


def test_marks_put_on_records_by_vllm_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """What vLLM adds to every record of its process is no field of ours."""
    setup_logging("decode-0", "info", "text")
    marks = {"msg": "accepted", "levelno": logging.INFO, "levelname": "INFO", "vllm_process_name": "MainProcess"}
    logging.getLogger("x").handle(logging.makeLogRecord(marks))
    assert capsys.readouterr().err.strip().endswith("decode-0 info accepted")


def test_a_trail_names_the_frames_but_not_the_text() -> None:
    """An exception's text may hold a prompt."""
    try:
        [][len("secret")]
    except IndexError as error:
        told = trail(error)
    assert told.startswith("IndexError at test_logs.py:")
    assert told.endswith("test_a_trail_names_the_frames_but_not_the_text")
    assert trail(KeyError("secret")) == "KeyError"
