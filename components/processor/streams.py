"""Token batches in, each request's own deltas out; notices what was lost on the way.

Knows numbering: batches count up for each worker incarnation, deltas carry how many tokens came before them. An attempt
whose tokens are lost, late or orphaned gets a last delta with the error WORKER_LOST. Pure but for `Inbox.take`.
"""

import asyncio
from dataclasses import dataclass, field

from components.processor.fleet import Worker
from components.wire.errors import ErrorCode, ErrorReply
from components.wire.messages import TokenBatch, TokenDelta

_SUSPECT_S = 2.0


class Inbox:
    """What has come for one client's request and waits to be sent on; one reader."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Attempt, TokenDelta]] = []
        self._filled = asyncio.Event()

    def put(self, attempt: "Attempt", delta: TokenDelta) -> None:
        """Add one delta."""
        self._waiting.append((attempt, delta))
        self._filled.set()

    async def take(self) -> "list[tuple[Attempt, TokenDelta]]":
        """Wait for deltas, and return all there are, in order."""
        await self._filled.wait()
        self._filled.clear()
        taken, self._waiting = self._waiting, []
        return taken


@dataclass(eq=False)
class Attempt:
    """One sequence on one worker.

    Attributes:
        request_id: unique to this attempt.
        sequence: the number of the sequence within its client's request.
        worker: who has it.
        inbox: where its deltas go.
        sent_s: when it was given to the worker, on the caller's clock.
        tokens: how many have come.
        heard_s: when the last ones came.
        suspect_s: since when a batch is missing that may have held tokens of it.
        lost: given up; nothing more is delivered.
        died: its worker's process is gone, perhaps because of it.
        settled: set when the worker has said a word of it, has refused it, or was lost.
        refusal: why the worker does not take it.
    """

    request_id: str
    sequence: int
    worker: Worker
    inbox: Inbox
    sent_s: float
    tokens: int = 0
    heard_s: float = 0.0
    suspect_s: float | None = None
    lost: bool = False
    died: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: Exception | None = None

    def settle(self, refusal: Exception | None = None) -> None:
        """Note that the worker has it, or why not; only the first word counts."""
        if not self.settled.is_set():
            self.refusal = refusal
            self.settled.set()


@dataclass(frozen=True)
class Patience:
    """How long a worker may be silent about an attempt, in seconds: before its first token, and between two.

    Only the time counts in which the worker stands still: while its counts of tokens grow, others are having their turn.
    """

    first_token_s: float
    inactivity_s: float


class Streams:
    """All attempts of this process."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._attempts: dict[str, Attempt] = {}
        self._last_seq: dict[str, tuple[str, int]] = {}
        self.gaps = 0
        self.orphans: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def open(self, attempt: Attempt) -> None:
        """From now on deliver what comes for `attempt`."""
        attempt.heard_s = attempt.sent_s
        self._attempts[attempt.request_id] = attempt

    def close(self, attempt: Attempt) -> bool:
        """Deliver nothing more; return whether the worker may still be at it, and should be told to stop."""
        return self._attempts.pop(attempt.request_id, None) is not None

    def deliver(self, batch: TokenBatch, now_s: float) -> None:
        """Hand each delta of `batch` to its request, and look for gaps."""
        missed = self._missed(batch)
        for delta in batch.deltas:
            attempt = self._attempts.get(delta.request_id)
            if attempt is None:
                if delta.finish_reason is None and delta.error is None:
                    self.orphans.setdefault(batch.worker, []).append(delta.request_id)
            elif attempt.lost:
                continue
            elif delta.offset != attempt.tokens:
                self._lose(attempt, "tokens were lost on the way")
            else:
                attempt.tokens += len(delta.token_ids)
                attempt.heard_s, attempt.suspect_s = now_s, None
                attempt.settle()
                if delta.finish_reason is not None or delta.error is not None:
                    del self._attempts[delta.request_id]
                if delta.token_ids or delta != TokenDelta(delta.request_id, delta.offset):  # else it only acknowledges
                    attempt.inbox.put(attempt, delta)
        if missed:
            self._suspect(batch, now_s)

    def lose_worker(self, worker: Worker) -> None:
        """The process of `worker` is gone, and its attempts with it."""
        for attempt in self._attempts.values():
            if (attempt.worker.name, attempt.worker.incarnation) == (worker.name, worker.incarnation):
                attempt.died = not attempt.lost
                self._lose(attempt, "its process is gone")

    def sweep(self, now_s: float) -> None:
        """Give up the attempts whose worker has been silent for too long, or whose tokens were in a lost batch."""
        for attempt in self._attempts.values():
            limit_s = self._patience.inactivity_s if attempt.tokens else self._patience.first_token_s
            if now_s - max(attempt.heard_s, attempt.worker.progress_s) > limit_s:
                self._lose(attempt, f"it stood still for {limit_s:g} s")
            elif attempt.suspect_s is not None and now_s - attempt.suspect_s > _SUSPECT_S:
                self._lose(attempt, "tokens were lost on the way")

    def _missed(self, batch: TokenBatch) -> bool:
        """Take in the batch's number; whether one before it is missing. An empty batch repeats the last number."""
        incarnation, last = self._last_seq.get(batch.worker, (batch.incarnation, -1))
        if incarnation != batch.incarnation:
            last = -1
        self._last_seq[batch.worker] = (batch.incarnation, batch.seq)
        return batch.seq != (last + 1 if batch.deltas else last)

    def _suspect(self, batch: TokenBatch, now_s: float) -> None:
        """Put every attempt there that this batch does not prove whole under suspicion; the next tokens clear it."""
        self.gaps += 1
        proven = {delta.request_id for delta in batch.deltas}
        for attempt in self._attempts.values():
            if attempt.worker.name == batch.worker and attempt.request_id not in proven and attempt.suspect_s is None:
                attempt.suspect_s = now_s

    def _lose(self, attempt: Attempt, why: str) -> None:
        if attempt.lost:
            return
        attempt.lost = True
        error = ErrorReply(ErrorCode.WORKER_LOST, f"worker {attempt.worker.name} was lost: {why}")
        attempt.settle()  # its end waits in the inbox
        attempt.inbox.put(attempt, TokenDelta(attempt.request_id, attempt.tokens, error=error))
