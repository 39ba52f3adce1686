"""All sequences of one client's request: given to workers, merged, moved to another worker when one is lost, cleaned up.

Knows attempts and replays, not HTTP or OpenAI's formats.
"""

import logging
import time
from asyncio import TaskGroup
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from random import getrandbits

import msgspec

from components.model.tokenizer import Tokenizer
from components.processor.fleet import Worker
from components.processor.plan import Plan
from components.processor.resume import exact
from components.processor.routing import Booking, Router
from components.processor.sequence import Sequence
from components.processor.streams import Attempt, Inbox
from components.processor.workers import Workers
from components.telemetry.tracing import carry, span
from components.wire.errors import EngineDiedError, ErrorReply, WorkerLostError, from_reply
from components.wire.messages import FinishReason, GenerateRequest, TokenDelta
from components.wire.routing import RouteReply, RouteRequest

log = logging.getLogger(__name__)

_MOST_DEATHS = 2


@dataclass(frozen=True)
class Piece:
    """New output of one sequence, as the client shall see it; the sequence holds it already."""

    sequence: Sequence
    delta: TokenDelta


@dataclass(frozen=True)
class Terms:
    """How generations are run: seconds of waiting, and numbers.

    Attributes:
        wait_s: for a worker, at the start.
        replay_wait_s: for a worker, when one was lost.
        timeout_s: for the whole answer.
        max_replays: how often one sequence may move.
        session: of the client; the router may keep a session on one worker.
    """

    wait_s: float
    replay_wait_s: float
    timeout_s: float
    max_replays: int
    session: str | None = None


class Generation:
    """The work behind one client's request, between `start` and `stop`.

    Attributes:
        sequences: one a choice and prompt, in the order of the answer.
        replays: how often a sequence was moved.
    """

    def __init__(
        self,
        plan: Plan,
        context_tokens: int,
        workers: Workers,
        router: Router | None,
        tokenizer: Tokenizer,
        terms: Terms,
    ) -> None:
        """Prepare, without starting anything.

        Raises:
            InvalidRequestError: a prompt does not fit the context.
        """
        self._plan = plan
        self._workers = workers
        self._router = router
        self._bookings: dict[int, Booking] = {}
        self._tokenizer = tokenizer
        self._terms = terms
        self._inbox = Inbox()
        self._id = f"{getrandbits(64):016x}"
        self._deadline_unix_s = time.time() + terms.timeout_s
        self._attempts: dict[int, Attempt] = {}
        choices = [(prompt, choice) for prompt in plan.prompts for choice in range(plan.n)]
        self.sequences = [
            Sequence(index, prompt, plan.sampling(prompt, choice, context_tokens))
            for index, (prompt, choice) in enumerate(choices)
        ]
        self._tokens_seen = plan.stream and (plan.token_ids or plan.settings.logprobs is not None)
        self.replays = 0
        self._died: set[tuple[str, str]] = set()  # workers, with their incarnations
        self._routes: dict[int, RouteReply | None] = {}

    @property
    def workers(self) -> list[str]:
        """Names of the workers that have the sequences, or had them last."""
        return list(dict.fromkeys(sequence.worker for sequence in self.sequences if sequence.worker))

    @property
    def routes(self) -> list[RouteReply | None]:
        """What the router chose for each prompt, None where it was not followed or away; empty without a router."""
        return list(self._routes.values())

    async def start(self) -> None:
        """Give every sequence to a worker, those of one prompt to the same; `stop` must follow, whatever comes of it.

        Raises:
            NoWorkerError: no worker takes them.
            PenstockError: a worker refuses them for what they are.
        """
        if len(self.sequences) == 1:
            await self._start(self.sequences[0], await self._choose(self.sequences))
        else:
            each = self._plan.n
            await self._start_together(self.sequences[at : at + each] for at in range(0, len(self.sequences), each))

    def stop(self) -> None:
        """Leave nothing behind: workers still at it are told to stop, bookings end. Never waits."""
        for sequence in self.sequences:
            if sequence.index in self._attempts:
                self._release(sequence)
            self._end_booking(sequence)

    @property
    def over(self) -> bool:
        """Whether every sequence that was started has ended."""
        return not self._attempts

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Yield new output as it comes, all that waits at once, until every sequence has ended.

        Raises:
            WorkerLostError: a worker was lost and its sequence cannot be continued.
            PenstockError: a worker ended a sequence with an error.
        """
        while self._attempts:
            pieces: list[Piece] = []
            lost: list[tuple[Sequence, Attempt, ErrorReply]] = []
            for attempt, delta in await self._inbox.take():
                if self._attempts.get(attempt.sequence) is not attempt:
                    continue
                sequence = self.sequences[attempt.sequence]
                if delta.error is not None:
                    lost.append((sequence, attempt, delta.error))
                else:
                    if booking := self._bookings.get(sequence.index):
                        booking.first_token(delta.cached_tokens)
                    pieces.append(Piece(sequence, sequence.take(delta, self._tokens_seen)))
                    if delta.finish_reason is not None:
                        self._release(sequence)
            if pieces:
                yield pieces
            if lost and (ends := await self._recover(lost)):
                yield ends

    async def _start_together(self, prompts: Iterable[list[Sequence]]) -> None:
        """Give sequences to workers, those of one prompt to the same; none waits for another."""
        try:
            async with TaskGroup() as tasks:
                for sequences in prompts:
                    first = await self._choose(sequences)
                    for sequence in sequences:
                        tasks.create_task(self._start(sequence, first))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _choose(self, sequences: list[Sequence]) -> Worker | None:
        """Return a worker for sequences of one prompt: the router's choice, or the least busy one."""
        first = sequences[0]
        worker = None
        if self._router is not None:
            request = RouteRequest(
                request_id=f"{self._id}-{first.index}-{first.replays}",
                model=self._plan.model,
                blocks=first.prompt.blocks,
                prompt_tokens=len(first.prompt.token_ids) + len(first.token_ids),
                deadline_unix_s=self._deadline_unix_s,
                session=self._terms.session,
                excluded=sorted(first.tried),
            )
            booking = await self._ask(self._router, request)
            if booking is not None:
                worker = self._book(booking, sequences)
            self._routes[self._prompt_of(first)] = booking.reply if booking and worker else None
        return worker or self._workers.choose(frozenset(first.tried))

    async def _ask(self, router: Router, request: RouteRequest) -> Booking | None:
        with span("route", prompt_tokens=request.prompt_tokens) as traced:
            booking = await router.choose(request)
            if booking is not None:
                chosen = booking.reply.chosen
                traced.set(worker=chosen.worker, overlap_blocks=chosen.overlap_blocks, cost_s=chosen.cost_s)
        return booking

    def _book(self, booking: Booking, sequences: list[Sequence]) -> Worker | None:
        """Hold a booking for `sequences`, and return its worker; None when that one cannot be used."""
        worker = self._workers.named(booking.reply.chosen.worker)
        if worker is not None:
            for sequence in sequences:
                booking.hold()
                self._bookings[sequence.index] = booking
        booking.finish()
        return worker

    async def _start(self, sequence: Sequence, first: Worker | None) -> None:
        """Give `sequence`, with what it has so far, to a worker."""
        done = len(sequence.token_ids)
        sampling = sequence.sampling
        if done:
            least = max(0, sampling.min_tokens - done)
            sampling = msgspec.structs.replace(sampling, max_tokens=sampling.max_tokens - done, min_tokens=least)
        request = GenerateRequest(
            request_id=f"{self._id}-{sequence.index}",
            processor=self._workers.name,
            model=self._plan.model,
            token_ids=sequence.prompt.token_ids + sequence.token_ids,
            sampling=sampling,
            deadline_unix_s=self._deadline_unix_s,
            cache_salt=self._plan.cache_salt,
            replayed_tokens=done,
            parsing=self._plan.tools.parsing,
            trace=carry(),
        )
        wait_s = self._terms.replay_wait_s if sequence.replays else self._terms.wait_s
        attempt = await self._workers.place(request, sequence.index, self._inbox, first, sequence.tried, wait_s)
        self._attempts[sequence.index] = attempt
        booking = self._bookings.get(sequence.index)
        if booking is not None and booking.reply.chosen.worker != attempt.worker.name:
            self._end_booking(sequence)
            self._routes[self._prompt_of(sequence)] = None
        sequence.worker = attempt.worker.name

    def _prompt_of(self, sequence: Sequence) -> int:
        """Return the index of the first choice of its prompt."""
        return sequence.index - sequence.index % self._plan.n

    async def _recover(self, lost: list[tuple[Sequence, Attempt, ErrorReply]]) -> list[Piece]:
        """Go on with what was lost in one moment, choices of one prompt on one worker; return ends where only they lacked.

        Raises:
            WorkerLostError: it cannot be continued.
            PenstockError: its worker ended it with an error.
        """
        ends: list[Piece] = []
        moving: dict[int, list[Sequence]] = {}
        for sequence, attempt, error in lost:
            self._release(sequence)
            self._count_loss(sequence, attempt, error)
            self._take_back(sequence, error)
            done = len(sequence.token_ids)
            if done < sequence.sampling.max_tokens:
                moving.setdefault(self._prompt_of(sequence), []).append(sequence)
            else:
                end = TokenDelta("", done, finish_reason=FinishReason.LENGTH)
                ends.append(Piece(sequence, sequence.take(end, self._tokens_seen)))
        await self._start_together(moving.values())
        return ends

    def _count_loss(self, sequence: Sequence, attempt: Attempt, error: ErrorReply) -> None:
        raised = from_reply(error)
        if not isinstance(raised, WorkerLostError):
            raise raised
        if attempt.died or isinstance(raised, EngineDiedError):
            self._died.add((attempt.worker.name, attempt.worker.incarnation))
        if len(self._died) >= _MOST_DEATHS:
            raise WorkerLostError(f"{error.message}; two workers died under this request, and no third one shall")
        if sequence.replays >= self._terms.max_replays:
            raise WorkerLostError(f"{error.message}; moved {sequence.replays} times already")
        sequence.replays += 1
        self.replays += 1
        sequence.tried.add(attempt.worker.name)
        log.warning("moving a request to another worker", extra={"worker": attempt.worker.name, "error": error.message})

    def _take_back(self, sequence: Sequence, error: ErrorReply) -> None:
        """Leave of `sequence` what another worker can continue."""
        can_go_on = not self._plan.tools.parsing and exact(sequence.sampling)
        if not can_go_on and self._plan.stream and sequence.token_ids:
            raise WorkerLostError(
                f"{error.message}; an answer that is parsed, or has constraints or output penalties, cannot be continued"
            )
        if not can_go_on:
            sequence.restart()
        elif sequence.token_ids:
            sequence.rejoin(self._tokenizer.decode_raw, self._plan.stream)

    def _release(self, sequence: Sequence) -> None:
        self._workers.release(self._attempts.pop(sequence.index))
        self._end_booking(sequence)

    def _end_booking(self, sequence: Sequence) -> None:
        if booking := self._bookings.pop(sequence.index, None):
            booking.finish()
