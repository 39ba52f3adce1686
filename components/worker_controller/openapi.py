"""The OpenAPI document of the REST API, made from the types that the API itself reads and writes. Pure."""

from typing import Any, NamedTuple

import msgspec

from components.worker_controller.answers import (
    Created,
    Deleted,
    Engines,
    ErrorAnswer,
    Health,
    Root,
    SleepRequest,
    Workers,
)
from components.worker_controller.engine import EngineView
from components.worker_controller.engine_request import Body
from components.worker_controller.timings import LoadTimings

_REFS = "#/components/schemas/{name}"
_ERRORS = {
    "400": "What is asked for cannot be had: a model that cannot be loaded, something the owner has not allowed.",
    "401": "The token is missing or wrong.",
    "404": "No engine has this name.",
    "409": "The name is in use, the pool is too small, or the engine's state does not allow it.",
    "422": "The body is malformed: a field is missing, unknown, or of the wrong type.",
    "503": "No rank or port is free now, or a process was lost on the way; Retry-After says when to try again.",
}


class _Route(NamedTuple):
    """One operation.

    Attributes:
        summary: what it does.
        answer: the type of a success.
        body: the type of its body.
        errors: which of `_ERRORS` it may answer.
    """

    summary: str
    answer: Any
    body: Any = None
    errors: tuple[str, ...] = ()


_ENGINE = "/engines/{uuid}"

ROUTES: dict[tuple[str, str], _Route] = {
    ("get", "/"): _Route("Say what this is", Root),
    ("get", "/health"): _Route("Say whether the pool is ready; 503 until it is", Health, errors=("503",)),
    ("get", "/workers"): _Route("List the ranks", Workers),
    ("get", "/engines"): _Route("List the engines", Engines),
    ("post", "/engines"): _Route("Create an engine", Created, Body, ("400", "409", "422", "503")),
    ("get", _ENGINE): _Route("Tell an engine's state", EngineView, errors=("404",)),
    ("delete", _ENGINE): _Route("End an engine", Deleted, errors=("404",)),
    ("get", f"{_ENGINE}/load_timings"): _Route("Tell where its load's time went", LoadTimings, errors=("404",)),
    ("post", f"{_ENGINE}/sleep"): _Route(
        "Free its GPU memory (vLLM's levels 1 and 2)", EngineView, SleepRequest, ("400", "404", "409", "422")
    ),
    ("post", f"{_ENGINE}/wake_up"): _Route("Take its GPU memory again", EngineView, errors=("400", "404", "409")),
}
"""Every operation but those that serve this document."""


def document() -> dict[str, Any]:
    """Return the document."""
    types = {route.answer for route in ROUTES.values()} | {route.body for route in ROUTES.values() if route.body}
    _, schemas = msgspec.json.schema_components(sorted({*types, ErrorAnswer}, key=str), ref_template=_REFS)
    schemas["Body"]["additionalProperties"] = {"description": "Any other vLLM engine argument, by its Python name."}
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), route in ROUTES.items():
        paths.setdefault(path, {})[method] = _operation(path, route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "penstock worker controller",
            "version": "1",
            "description": "Engines on demand from a pool of warm workers.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(path: str, route: _Route) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": route.summary,
        "responses": {
            "200": {"description": "Done.", "content": _json(route.answer)},
            **{code: {"description": _ERRORS[code], "content": _json(ErrorAnswer)} for code in (*route.errors, "401")},
        },
    }
    if "{uuid}" in path:
        made["parameters"] = [{"name": "uuid", "in": "path", "required": True, "schema": {"type": "string"}}]
    if route.body is not None:
        made["requestBody"] = {"required": route.body is Body, "content": _json(route.body)}
    return made


def _json(kind: Any) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFS.format(name=kind.__name__)}}}
