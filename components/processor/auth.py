"""The cache salt that keeps the KV of different API keys apart; the keys themselves stand in `components.graph.keys`."""

import hashlib
import hmac


def salt_for(key: str | None, asked: str | None, isolate: bool) -> str | None:
    """Return the cache salt of a request: what it asked for, and with `isolate` one of its API key's own."""
    if not isolate or key is None:
        return asked
    own = hmac.new(key.encode(), b"penstock cache salt", hashlib.sha256).hexdigest()
    return own if asked is None else f"{own}:{asked}"
