"""What a router tells over HTTP: metrics, workers, why a choice would be made, the last choices, how big the index is.

Knows HTTP and JSON. A prompt given as text is turned into tokens by a processor, so it is read exactly as a request's is.
"""

import asyncio
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta
from msgspec.structs import asdict

from components.bus.client import Bus, BusError
from components.bus.member import Member
from components.http.edge import Edge, json_response
from components.router.cost import Prompt
from components.router.service import RouterService
from components.router.views import by_number, index_view, worker_view
from components.telemetry.metrics import CONTENT_TYPE, render
from components.wire.block_hash import block_hashes, root_hash
from components.wire.errors import InvalidRequestError, ModelNotFoundError, NotFoundError, NoWorkerError
from components.wire.routing import Tokenized, TokenizeQuery
from components.wire.subjects import Subjects

_TOKENIZE_TIMEOUT_S = 5.0
_SHOWN_DECISIONS = 200

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class ExplainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /explain: one of `prompt`, `messages` and `token_ids`, and what else decides.

    Attributes:
        prompt: text, as in a completion.
        messages: as in a chat completion, with `tools` and the template's other fields.
        token_ids: the prompt as the model reads it.
        cache_salt: of the request; other salts share no KV.
        session: of the request.
        excluded: workers that shall not be chosen.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    tools: list[Any] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    session: str | None = None
    excluded: list[str] = []


class Explanation(msgspec.Struct, frozen=True):
    """The answer to POST /explain.

    Attributes:
        policy: which would choose.
        router: who answers.
        prompt_tokens: the prompt's length.
        prompt_blocks: its full blocks.
        choice: the worker, as `RouteCandidate` describes it; null when there is none.
        candidates: every worker that might be chosen, likewise, cheapest first.
    """

    policy: str
    router: str
    prompt_tokens: int
    prompt_blocks: int
    choice: dict[str, Any] | None
    candidates: list[dict[str, Any]]


class Queries:
    """The routes."""

    def __init__(self, service: RouterService, edge: Edge, bus: Bus, subjects: Subjects, member: Member) -> None:
        self._service = service
        self._edge = edge
        self._bus = bus
        self._subjects = subjects
        self._member = member

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        return self._edge.application(
            [
                web.get("/metrics", self._metrics),
                web.get("/workers", self._workers),
                web.get("/workers/{name}", self._worker),
                web.post("/workers/{name}/reset", self._reset),
                web.post("/explain", self._explain),
                web.get("/decisions", self._decisions),
                web.get("/index/stats", self._index),
                web.get("/health", self._health),
                web.get("/ready", self._ready),
            ]
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        body = await asyncio.to_thread(render, [self._member.metrics()])
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _workers(self, _: web.Request) -> web.Response:
        names = sorted(self._service.roster.everybody, key=by_number)
        return json_response({"workers": [worker_view(self._service, name) for name in names]})

    async def _worker(self, request: web.Request) -> web.Response:
        return json_response(worker_view(self._service, self._named(request)))

    async def _reset(self, request: web.Request) -> web.Response:
        name = self._named(request)
        await self._service.reset(name)
        return json_response(worker_view(self._service, name))

    def _named(self, request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in self._service.roster.everybody:
            raise NotFoundError("no worker has this name; GET /workers lists them", param="name")
        return name

    async def _explain(self, request: web.Request) -> web.Response:
        body = _parse(await self._edge.read(request))
        service = self._service
        if body.model not in (None, service.model):
            raise ModelNotFoundError(f"this router serves {service.model!r}", param="model")
        token_ids = body.token_ids if body.token_ids is not None else await self._tokenize(body)
        blocks = block_hashes(token_ids, service.block_size, root_hash(service.model, None, body.cache_salt))
        decision = service.explain(Prompt(blocks, len(token_ids), body.session), body.excluded)
        choice = asdict(service.told(decision.choice)) if decision.choice else None
        cheapest_first = sorted(decision.candidates, key=lambda candidate: candidate.cost_s)
        candidates = [asdict(service.told(candidate)) for candidate in cheapest_first]
        return json_response(
            Explanation(
                policy=service.policy,
                router=service.name,
                prompt_tokens=len(token_ids),
                prompt_blocks=len(blocks),
                choice=choice,
                candidates=candidates,
            )
        )

    async def _tokenize(self, body: ExplainRequest) -> list[int]:
        """Have a processor read a prompt."""
        fields = ("prompt", "messages", "tools", "add_special_tokens", "add_generation_prompt")
        more = ("continue_final_message", "chat_template_kwargs")
        asked = {name: value for name in fields + more if (value := getattr(body, name)) is not None}
        query = TokenizeQuery(msgspec.json.encode(asked))
        try:
            reply = await self._bus.request(self._subjects.tokenize(), query, Tokenized, _TOKENIZE_TIMEOUT_S)
        except BusError as error:
            raise NoWorkerError("no processor answers, and only processors read text; send token_ids") from error
        return reply.token_ids

    async def _decisions(self, request: web.Request) -> web.Response:
        limit = request.query.get("limit", str(_SHOWN_DECISIONS))
        if len(limit) > 3 or not limit.isdecimal() or not 1 <= int(limit) <= _SHOWN_DECISIONS:
            raise InvalidRequestError(f"limit: must be 1 to {_SHOWN_DECISIONS}", param="limit")
        return json_response({"policy": self._service.policy, "decisions": list(self._service.journal.last(int(limit)))})

    async def _index(self, _: web.Request) -> web.Response:
        return json_response(index_view(self._service))

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, _: web.Request) -> web.Response:
        workers = len(self._service.roster.workers)
        ready = workers > 0 and self._bus.connected
        return json_response({"workers": workers, "nats": self._bus.connected}, 200 if ready else 503)


def _parse(data: bytes) -> ExplainRequest:
    """Return the body of POST /explain.

    Raises:
        InvalidRequestError: it is none, or holds not exactly one prompt.
    """
    try:
        body = msgspec.json.decode(data, type=ExplainRequest)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"the body: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequestError("the body is not valid JSON in UTF-8") from None
    if sum(each is not None for each in (body.prompt, body.messages, body.token_ids)) != 1:
        raise InvalidRequestError("exactly one of prompt, messages and token_ids must be set", param="prompt")
    return body
