"""What the REST API answers, beside an engine's own status: types, from which the OpenAPI document is made, too."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from components.worker_controller.engine import Engine, EngineView
from components.worker_controller.rank_slot import RankView


class Root(msgspec.Struct, frozen=True):
    """The answer of GET /."""

    message: str
    status: Literal["running"]
    num_workers: int


class Health(msgspec.Struct, frozen=True):
    """The answer of GET /health: ``healthy`` with 200, ``starting`` with 503."""

    status: Literal["healthy", "starting"]
    num_workers: int
    num_engines: int


class Workers(msgspec.Struct, frozen=True):
    """The answer of GET /workers."""

    num_workers: int
    workers: list[RankView]


class Engines(msgspec.Struct, frozen=True):
    """The answer of GET /engines."""

    num_engines: int
    engines: list[EngineView]


class Created(msgspec.Struct, frozen=True):
    """The answer of POST /engines; see `EngineView` for the fields.

    Attributes:
        status: ``created``: the engine answers at `api_url`.
    """

    engine_uuid: str
    status: Literal["created"]
    api_url: str | None
    port: int | None
    assigned_ranks: list[int]
    model: str | None
    pid: int | None
    create_timings: dict[str, float] | None

    @classmethod
    def of(cls, engine: Engine) -> "Created":
        """Return the answer about `engine`."""
        view = engine.view()
        return cls(
            engine_uuid=view.engine_uuid,
            status="created",
            api_url=view.api_url,
            port=view.port,
            assigned_ranks=view.assigned_ranks,
            model=view.model,
            pid=view.pid,
            create_timings=view.create_timings,
        )


class Deleted(msgspec.Struct, frozen=True):
    """The answer of DELETE /engines/{uuid}.

    Attributes:
        message: for a person.
        released_ranks: the ranks that can be had again.
        released_port: the port that can be had again; null for an engine without one.
    """

    message: str
    released_ranks: list[int]
    released_port: int | None


class SleepRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /engines/{uuid}/sleep; may be left out.

    Attributes:
        level: 1 keeps the weights in the host's memory, 2 forgets them.
    """

    level: Annotated[int, Meta(ge=1, le=2)] = 1


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong; see docs/protocol.md for the codes."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Every error, in OpenAI's shape."""

    error: ErrorDetail
