"""API keys: who is let in."""

import pytest

from components.graph.keys import ApiKeys
from components.wire.errors import InvalidApiKeyError


def test_any_of_the_keys_opens() -> None:
    """As a Bearer token, with the scheme in any case."""
    keys = ApiKeys.from_environment({"PENSTOCK_API_KEY": "one, two,"})
    assert keys.check("Bearer one") == "one"
    assert keys.check("bearer  two ") == "two"


@pytest.mark.parametrize(
    "header", [None, "", "one", "Basic one", "Bearer", "Bearer three", "Bearer one two", "Bearer \udcff"]
)
def test_anything_else_does_not(header: str | None) -> None:
    """No header, another scheme, another key, broken text."""
    with pytest.raises(InvalidApiKeyError):
        ApiKeys(["one"]).check(header)


def test_without_keys_everybody_may_ask() -> None:
    """Whatever the header says."""
    assert ApiKeys.from_environment({}).check("Bearer x") is None


def test_a_client_of_ours_shows_the_first_key() -> None:
    """A server with the same keys takes it; without keys there is no header."""
    keys = ApiKeys(["one", "two"])
    assert keys.check(keys.authorization["Authorization"]) == "one"
    assert ApiKeys([]).authorization == {}
