"""The story of one request: read it, give it to a worker, hand its tokens on.

Knows the order of things; how each is done stands in the files it calls. What it yields are bytes for the client.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from components.graph.schema import Http
from components.model.tokenizer import Tokenizer
from components.processor.auth import salt_for
from components.processor.chat_answer import ChatAnswer
from components.processor.completion_answer import CompletionAnswer
from components.processor.deadline import Deadline
from components.processor.defaults import NO_DEFAULTS, Defaults
from components.processor.fleet import Fleet
from components.processor.generation import Generation, Terms
from components.processor.metrics import Clock, Metrics
from components.processor.openai import TokenizeRequest, parse
from components.processor.plan import Plan, plan_chat, plan_completion
from components.processor.render import Prompt, tokenize
from components.processor.routing import Router
from components.processor.sampling import Limits
from components.processor.workers import Workers
from components.wire.block_hash import block_hashes, root_hash
from components.wire.errors import InvalidRequestError, NoWorkerError
from components.wire.routing import Tokenized, TokenizeQuery

T = TypeVar("T")

_INLINE_BYTES = 8192  # two milliseconds of tokenizing at most; a thread's round trip costs a loaded process more
_LARGE_BYTES = 65536
_START_WAIT_S = 2.0


@dataclass(frozen=True)
class Caller:
    """One HTTP request, as far as the pipeline needs it.

    Attributes:
        body: what the client sent.
        answer_id: the answer's id, without prefix.
        key: the API key, when one was needed.
        clock: when it came.
        session: its session, for the router.
    """

    body: bytes
    answer_id: str
    key: str | None
    clock: Clock
    session: str | None = None


@dataclass(frozen=True)
class Part:
    """A piece of an answer.

    Attributes:
        data: bytes for the client.
        last: whether nothing follows.
    """

    data: bytes
    last: bool


@dataclass(frozen=True)
class Answering:
    """An answer in the making.

    Attributes:
        plan: what was asked.
        generation: who is at it; known from the first part on.
        parts: bytes for the client: the events of a stream, or one whole answer.
    """

    plan: Plan
    generation: Generation
    parts: AsyncIterator[Part]


class Pipeline:
    """Answers requests for one model."""

    def __init__(
        self,
        model: str,
        http: Http,
        tokenizer: Tokenizer,
        fleet: Fleet,
        workers: Workers,
        metrics: Metrics,
        router: Router | None = None,
        block_size: int = 0,
        defaults: Defaults = NO_DEFAULTS,
    ) -> None:
        """Prepare.

        Args:
            model: the served model's name.
            http: settings.
            tokenizer: of the model.
            fleet: the workers there are.
            workers: the way to them.
            metrics: counts.
            router: chooses among the workers, where the graph has one.
            block_size: tokens a KV block, for the router.
            defaults: the model's, for what a request leaves open.
        """
        self.model = model
        self.tokenizer = tokenizer
        self._http = http
        self._fleet = fleet
        self._workers = workers
        self._metrics = metrics
        self._router = router
        self._block_size = block_size
        self._limits = Limits(tokenizer.vocab_size, http.max_choices, http.max_logprobs, defaults=defaults)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="render")
        self._large_threads = ThreadPoolExecutor(2, thread_name_prefix="render-large")
        self._terms = Terms(_START_WAIT_S, http.inactivity_timeout_s, http.request_timeout_s, http.max_replays)

    @asynccontextmanager
    async def chat(self, caller: Caller) -> AsyncIterator[Answering]:
        """Answer a chat completion; nothing is left behind at the end of the context.

        Raises:
            PenstockError: it cannot be answered.
        """
        async with self._answering(caller, plan_chat, ChatAnswer) as answering:
            yield answering

    @asynccontextmanager
    async def completion(self, caller: Caller) -> AsyncIterator[Answering]:
        """Answer a text completion; as `chat`."""
        async with self._answering(caller, plan_completion, CompletionAnswer) as answering:
            yield answering

    async def tokenize(self, query: TokenizeQuery) -> Tokenized:
        """Return the tokens a prompt becomes, for a router that explains.

        Raises:
            InvalidRequestError: it is no prompt.
        """
        body = parse(query.body, TokenizeRequest)
        return Tokenized(await self.off_loop(len(query.body), lambda: tokenize(body, self.tokenizer)))

    async def off_loop(self, size: int, work: Callable[[], T]) -> T:
        """Do CPU work on `size` bytes: at once, or in a thread, so that nobody waits for others' larger work."""
        if size <= _INLINE_BYTES:
            return work()
        lane = self._threads if size <= _LARGE_BYTES else self._large_threads
        return await asyncio.get_running_loop().run_in_executor(lane, work)

    async def _plan(self, caller: Caller, make: Callable[[bytes, str, Tokenizer, Limits], Plan], deadline: Deadline) -> Plan:
        reasoning = any(worker.offer.reasoning_parser for worker in self._fleet.ready())
        limits = msgspec.structs.replace(self._limits, context_tokens=self._fleet.context_tokens(), reasoning=reasoning)

        def work() -> Plan:
            plan = make(caller.body, self.model, self.tokenizer, limits)
            salt = salt_for(caller.key, plan.cache_salt, self._http.isolate_api_keys)
            return msgspec.structs.replace(plan, cache_salt=salt, prompts=self._hashed(plan.prompts, salt))

        size = len(caller.body)
        return work() if size <= _INLINE_BYTES else await deadline.within(self.off_loop(size, work))

    def _hashed(self, prompts: list[Prompt], salt: str | None) -> list[Prompt]:
        """Return the prompts with their block hashes, when there is a router to want them."""
        if self._router is None:
            return prompts
        root = root_hash(self.model, None, salt)
        hashes = [block_hashes(prompt.token_ids, self._block_size, root) for prompt in prompts]
        return [Prompt(prompt.token_ids, prompt.echo, blocks) for prompt, blocks in zip(prompts, hashes, strict=True)]

    @asynccontextmanager
    async def _answering(
        self,
        caller: Caller,
        make: Callable[[bytes, str, Tokenizer, Limits], Plan],
        writer: type[ChatAnswer | CompletionAnswer],
    ) -> AsyncIterator[Answering]:
        """Read the request and start generating; stop that at the end of the context."""
        deadline = Deadline(caller.clock.received_s, self._http.request_timeout_s)
        plan = await self._plan(caller, make, deadline)
        context_tokens = self._fleet.context_tokens()
        if context_tokens is None:
            context_tokens = await deadline.within(self._context_tokens())
            plan = await self._plan(caller, make, deadline)  # anew, by what the worker offers that has come
        answer = writer(plan, caller.answer_id, int(time.time()))
        if plan.tools.auto and not all(worker.offer.tool_parser for worker in self._fleet.ready()):
            raise InvalidRequestError(
                'tool_choice: "auto" needs a tool parser at the workers, and none is set up', param="tool_choice"
            )
        terms = replace(self._terms, session=caller.session)
        generation = Generation(plan, context_tokens, self._workers, self._router, self.tokenizer, terms)
        try:
            await deadline.within(generation.start())
            parts = self._parts(plan, answer, generation, caller.clock, deadline)
            yield Answering(plan, generation, parts)
        finally:
            generation.stop()
            self._metrics.moved(generation.replays)

    async def _parts(
        self, plan: Plan, answer: ChatAnswer | CompletionAnswer, generation: Generation, clock: Clock, deadline: Deadline
    ) -> AsyncIterator[Part]:
        """Yield the answer: one part for each turn of new tokens, the last one with the end; or all at the end.

        Raises:
            DeadlineExceededError: its time is over.
            PenstockError: see `Generation.pieces`.
        """
        sequences = generation.sequences
        head = answer.opening(sequences) if plan.stream else b""
        pieces = generation.pieces()
        while new := await deadline.within(anext(pieces, None)):
            self._metrics.first_token(clock)
            if plan.stream:
                head += answer.chunks(new)
                if not generation.over:
                    yield Part(head, last=False)
                    head = b""
        self._metrics.finished(clock, sequences, plan.n)
        yield Part(head + answer.closing(sequences) if plan.stream else answer.whole(sequences), last=True)

    async def _context_tokens(self) -> int:
        """Return the context length of the workers; waits a moment for one to come back.

        Raises:
            NoWorkerError: there is none.
        """
        until_s = time.monotonic() + (_START_WAIT_S if self._fleet.ever_ready else 0.0)
        while (tokens := self._fleet.context_tokens()) is None:
            if time.monotonic() >= until_s:
                raise NoWorkerError("no worker is ready", retry_after_s=1.0)
            await asyncio.sleep(0.05)
        return tokens
