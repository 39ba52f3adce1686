"""The document and the API are about the same routes."""

import re
from typing import Any

from components.graph.keys import ApiKeys
from components.http.edge import Edge, Limits
from components.worker_controller.app import Api
from components.worker_controller.openapi import document


def test_every_route_is_documented() -> None:
    """And nothing else; the document and its page need no description of themselves."""
    app = Api(None, Edge(ApiKeys([]), Limits())).make()  # type: ignore[arg-type]  # no route is called
    routes = {(route.method.lower(), route.resource.canonical) for route in app.router.routes() if route.resource}
    own = {(method, path) for path in ("/docs", "/openapi.json") for method in ("get", "head")}
    served = {route for route in routes - own if route[0] != "head"}
    assert served == {(method, path) for path, methods in document()["paths"].items() for method in methods}


def test_every_reference_leads_somewhere() -> None:
    """No type is missing, and the body's required fields are those of the guide."""
    made = document()
    for reference in re.findall(r"#/components/schemas/(\w+)", str(made)):
        assert reference in made["components"]["schemas"]
    body: dict[str, Any] = made["components"]["schemas"]["Body"]
    assert body["required"] == ["engine_uuid"]
