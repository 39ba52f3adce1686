"""What decode workers ask of prefill workers, and hear back; and how the rules of remote prefill are changed."""

from enum import StrEnum
from typing import Any

from components.wire.errors import ErrorReply
from components.wire.messages import Message


class PrefillJob(Message, frozen=True):
    """Compute the KV of this prompt, so that a decode worker can load it. Put into a durable queue; see `PrefillProgress`.

    Attributes:
        job_id: unique.
        worker: the decode worker that waits.
        model: the served model's name.
        token_ids: the prompt.
        put_unix_s: when it was put.
        deadline_unix_s: nobody waits any more after this moment.
        cache_salt: as in `GenerateRequest`.
        trace: as in `GenerateRequest`.
    """

    job_id: str
    worker: str
    model: str
    token_ids: list[int]
    put_unix_s: float
    deadline_unix_s: float
    cache_salt: str | None = None
    trace: str = ""


class PrefillState(StrEnum):
    """How far a prefill job is."""

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"


class PrefillProgress(Message, frozen=True):
    """A prefill worker tells the decode worker that waits.

    Attributes:
        job_id: which job.
        prefill_worker: who has it.
        state: how far it is. Done: any engine of this host can load the KV now. Failed: nobody will do it.
        readable_tokens: with done: leading tokens whose KV can be loaded.
        queued_s: from the put until it was taken, by two clocks.
        prefill_s: computing.
        store_s: from its end until the KV was readable.
        error: with failed.
    """

    job_id: str
    prefill_worker: str
    state: PrefillState
    readable_tokens: int = 0
    queued_s: float = 0.0
    prefill_s: float = 0.0
    store_s: float = 0.0
    error: ErrorReply | None = None


class PrefillCancel(Message, frozen=True):
    """Nobody waits for these jobs any more; to every prefill worker."""

    job_ids: list[str]


class DisaggChange(Message, frozen=True):
    """Change the rules by which decode workers leave prompts to prefill workers, or just ask for them.

    Attributes:
        changes: names of settings under `components.decode.disagg`, and their new values.
    """

    changes: dict[str, Any] = {}


class DisaggRules(Message, frozen=True):
    """The rules one decode worker goes by now.

    Attributes:
        worker: which.
        rules: every setting under `components.decode.disagg`.
        error: why the change was refused; then nothing was changed.
    """

    worker: str
    rules: dict[str, Any]
    error: ErrorReply | None = None
