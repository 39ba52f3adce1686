"""Asking the HTTP servers of a graph: keys shown, answers decoded, refusals in one line."""

import json
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any

import msgspec

from components.graph.keys import ENVIRONMENT, ApiKeys


def fetch(url: str, body: Any, timeout_s: float, method: str | None = None) -> Any:
    """Return the decoded JSON answer of a server, or None for an answer without a body.

    Args:
        url: one of our own.
        body: becomes JSON; None asks with GET.
        timeout_s: longest wait.
        method: if it is not the usual one.

    Raises:
        urllib.error.HTTPError: the server refuses; see `refusal`.
        OSError: it does not answer.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **ApiKeys.from_environment().authorization}
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 our own http URLs
    with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310 see above
        answer = response.read()
        return msgspec.json.decode(answer) if answer else None


def refusal(error: urllib.error.HTTPError, who: str) -> str:
    """Return why a server refuses, in one line; `who` it is, for a person."""
    if error.code == HTTPStatus.UNAUTHORIZED:
        return f"{who} wants an API key; set {ENVIRONMENT} as it was set for the graph"
    try:
        return str(msgspec.json.decode(error.read())["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"{who} answers {error.code}"
