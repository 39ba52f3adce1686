"""Whether what an LMCache server held is still there, by its process's statuses. Pure; told the time."""

from components.wire.process import ProcessState, ProcessStatus

_LAST_WORDS = frozenset({ProcessState.STOPPED, ProcessState.FAILED})


class StoreLife:
    """The life of one LMCache server."""

    def __init__(self) -> None:
        self._incarnation = ""
        self._heard_s: float | None = None

    def hear(self, status: ProcessStatus, now_s: float) -> bool:
        """Take in a status of the server's process; return whether what it held until now is gone."""
        if status.state in _LAST_WORDS:
            ended = status.incarnation == self._incarnation  # else it is a former life's last word, come late
            if ended:
                self._incarnation, self._heard_s = "", None
            return ended
        before, self._incarnation, self._heard_s = self._incarnation, status.incarnation, now_s
        return before != status.incarnation and (before != "" or status.state is ProcessState.STARTING)

    def fell_silent(self, now_s: float, silence_timeout_s: float) -> bool:
        """Return, once, whether the process has not been heard of for so long; what it held counts as gone then."""
        silent = self._heard_s is not None and now_s - self._heard_s > silence_timeout_s
        if silent:
            self._heard_s = None
        return silent

    def excuse(self, now_s: float) -> None:
        """Count it as heard of now: we could not hear it."""
        if self._heard_s is not None:
            self._heard_s = now_s
