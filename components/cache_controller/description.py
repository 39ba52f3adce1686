"""Describes the REST API: as OpenAPI for programs, and as a page for people that needs nothing from elsewhere."""

import html
import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

Described = tuple[str, type[msgspec.Struct], type[msgspec.Struct]]
"""A path, its body, its answer."""

_REFERENCE = "#/components/schemas/{name}"
_ERRORS = {
    "400": "no JSON, or something that cannot be done",
    "404": "no such instance, address or event",
    "422": "a field is missing or of the wrong type",
    "502": "a worker or server cannot be reached, or failed",
    "504": "a worker or server does not answer",
}
_GETS = {
    "/controller/workers": "All workers with what is known of each; ?instance_id= for one instance.",
    "/controller/key-stats": "How many chunks are known, by instance and location.",
    "/metrics": "Prometheus metrics.",
    "/ready": "200 while it serves.",
}


def openapi(described: Sequence[Described]) -> dict[str, Any]:
    """Return the OpenAPI document."""
    kinds = list(dict.fromkeys(kind for _, *both in described for kind in both))
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    schemas["Error"] = {"type": "object", "properties": {"error": {"type": "object"}}}
    paths: dict[str, Any] = {
        path: {
            "post": {
                "summary": _summary(body),
                "operationId": path.strip("/"),
                "requestBody": {"required": True, "content": _json(body.__name__)},
                "responses": {"200": {"description": _summary(answer), "content": _json(answer.__name__)}}
                | {code: {"description": text, "content": _json("Error")} for code, text in _ERRORS.items()},
            }
        }
        for path, body, answer in described
    }
    paths |= {path: {"get": {"summary": text, "responses": {"200": {"description": "ok"}}}} for path, text in _GETS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "penstock cache controller", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def docs_page(described: Sequence[Described]) -> str:
    """Return a page that lists every call with its fields."""
    rows = [
        f"<h2>POST {path}</h2><p>{html.escape(_summary(body))}</p>{_fields('body', body)}{_fields('answer', answer)}"
        for path, body, answer in described
    ]
    rows += [f"<h2>GET {path}</h2><p>{html.escape(text)}</p>" for path, text in _GETS.items()]
    errors = "".join(f"<li>{code}: {text}</li>" for code, text in _ERRORS.items())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>penstock cache controller</title>"
        "<style>body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto}td{padding:0 1em 0 0}</style>"
        '<h1>Cache controller</h1><p>For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(rows)}<h2>Errors</h2><ul>{errors}</ul></html>"
    )


def _fields(title: str, kind: type[msgspec.Struct]) -> str:
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    rows = [
        f"<tr><td><code>{name}</code><td>{html.escape(_type(details))}<td>{html.escape(details.get('description', ''))}"
        for name, details in schema["properties"].items()
    ]
    return f"<h3>{title}</h3><table>{''.join(rows)}</table>"


def _type(details: dict[str, Any]) -> str:
    """Return a schema's type in a few words."""
    if "anyOf" in details:
        return " or ".join(_type(each) for each in details["anyOf"])
    if details.get("type") == "array":
        return f"list of {_type(details['items'])}" if details.get("items") else "list"
    return str(details.get("type") or details.get("$ref", "").rpartition("/")[2] or "any of " + str(details.get("enum", "")))


def _summary(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(name=name)}}}
