"""The API keys that open a graph's HTTP servers. They come from the environment: a secret stands in no graph file."""

import hmac
import ipaddress
import os
from collections.abc import Mapping

from components.wire.errors import InvalidApiKeyError

ENVIRONMENT = "PENSTOCK_API_KEY"
WORKER_ENVIRONMENT = "PENSTOCK_WORKER_KEY"


class ApiKeys:
    """The keys that open a server; none means that it is open to everybody."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = [key.encode() for key in keys]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ApiKeys":
        """Return the keys in PENSTOCK_API_KEY, separated by commas."""
        return cls(_keys_in(environment, ENVIRONMENT))

    @classmethod
    def of_workers(cls, environment: Mapping[str, str] = os.environ) -> "ApiKeys":
        """Return the keys in PENSTOCK_WORKER_KEY, which job workers show; the others' keys where it is not set."""
        return cls(_keys_in(environment, WORKER_ENVIRONMENT) or _keys_in(environment, ENVIRONMENT))

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def first(self) -> str | None:
        """The key to show to a server; None without keys."""
        return self._keys[0].decode() if self._keys else None

    @property
    def authorization(self) -> dict[str, str]:
        """The header that shows the first key to a server; none without keys."""
        return {"Authorization": f"Bearer {self._keys[0].decode()}"} if self._keys else {}

    def check(self, authorization: str | None) -> str | None:
        """Return the key in an ``Authorization`` header; None when no key is needed.

        Raises:
            InvalidApiKeyError: a key is needed, and this is none of ours. The comparison takes the same time for any.
        """
        if not self._keys:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        offered = given.strip().encode(errors="surrogateescape")
        matches = [hmac.compare_digest(offered, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise InvalidApiKeyError("an API key is needed: Authorization: Bearer KEY")
        return offered.decode()


def _keys_in(environment: Mapping[str, str], variable: str) -> list[str]:
    return [key.strip() for key in environment.get(variable, "").split(",") if key.strip()]


def is_loopback(host: str) -> bool:
    """Whether what listens on `host` is reached from this machine only, so that it may do without a key."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
