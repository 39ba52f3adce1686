"""The salts made of API keys."""

from components.processor.auth import salt_for


def test_isolation_salts_by_key() -> None:
    """Different keys, different salts; never the key itself; a client's own salt still divides further."""
    one, two = salt_for("one", None, isolate=True), salt_for("two", None, isolate=True)
    assert one != two
    assert one is not None
    assert "one" not in one
    assert salt_for("one", "mine", isolate=True) == f"{one}:mine"
    assert salt_for("one", "mine", isolate=False) == "mine"
    assert salt_for(None, None, isolate=True) is None
