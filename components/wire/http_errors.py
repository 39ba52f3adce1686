"""How an error looks to an HTTP client, the same from every server of a graph: OpenAI's shape. Knows no HTTP server."""

import msgspec

from components.wire.errors import HTTP_STATUS, ErrorCode, PenstockError


def error_body(error: PenstockError) -> bytes:
    """Return `error` as JSON: ``{"error": {"message", "type", "param", "code"}}``."""
    shape = {"message": error.message, "type": _kind(error.code), "param": error.param, "code": error.code.value}
    return msgspec.json.encode({"error": shape})


def error_headers(error: PenstockError) -> dict[str, str]:
    """Return the headers that go with `error`: when to try again, or how to show a key."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.code is ErrorCode.INVALID_API_KEY:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _kind(code: ErrorCode) -> str:
    if code is ErrorCode.INVALID_API_KEY:
        return "authentication_error"
    if code is ErrorCode.OVERLOADED:
        return "rate_limit_error"
    return "server_error" if HTTP_STATUS[code] >= 500 else "invalid_request_error"
