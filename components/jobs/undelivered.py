"""Outcomes the queue has not acknowledged: on disk, so that they survive the connection, the queue and this process."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)


class Outcome(msgspec.Struct, frozen=True):
    """How a job ended here.

    Attributes:
        result: JSON text; None when it failed.
        error: why, then.
        upload_url: where a long result goes first.
    """

    job_id: str
    fence_token: str | int
    result: bytes | None = None
    error: str = ""
    upload_url: str | None = None


class Undelivered:
    """A folder with a file an outcome; a worker of one name has it for itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._there: dict[str, Outcome] = {}

    def open(self) -> None:
        """Make the folder, and take in what an earlier process left there.

        Raises:
            OSError: the folder cannot be used.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in sorted(self._folder.glob("*.outcome")):
            try:
                outcome = msgspec.msgpack.decode(file.read_bytes(), type=Outcome)
            except (OSError, msgspec.DecodeError) as error:
                log.warning("an undelivered outcome cannot be read", extra={"file": file.name, "error": str(error)})
                continue
            self._there[outcome.job_id] = outcome

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome, in the place of an earlier one of the same job; a full disk costs only the copy there."""
        self._there[outcome.job_id] = outcome
        file = self._file(outcome.job_id)
        try:
            part = file.with_suffix(".part")
            part.write_bytes(msgspec.msgpack.encode(outcome))
            part.replace(file)
        except OSError as error:
            log.warning("cannot keep an outcome on disk", extra={"job": outcome.job_id, "error": str(error)})

    def drop(self, job_id: str) -> None:
        """Forget the outcome of a job, if there is one."""
        if self._there.pop(job_id, None) is not None:
            self._file(job_id).unlink(missing_ok=True)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._there

    def __len__(self) -> int:
        return len(self._there)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(list(self._there.values()))

    def _file(self, job_id: str) -> Path:
        return self._folder / f"{hashlib.sha256(job_id.encode()).hexdigest()[:32]}.outcome"
