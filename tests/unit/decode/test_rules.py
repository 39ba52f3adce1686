"""Changes of the rules of remote prefill, as a decode worker takes them."""

from typing import Any

import pytest

from components.decode.remote_prefill import changed
from components.graph.schema import Disagg
from components.wire.errors import InvalidRequestError
from components.wire.prefill import DisaggChange

PATH = "components.decode.disagg"


def test_what_is_not_named_stays() -> None:
    """One rule changes, the others are as they were; nothing named changes nothing."""
    rules = Disagg(max_queue_depth=3)
    assert changed(rules, DisaggChange({"max_wait_s": 5})) == Disagg(max_queue_depth=3, max_wait_s=5.0)
    assert changed(rules, DisaggChange()) == rules


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_local_prefill_tokens": -1}, f"{PATH}.max_local_prefill_tokens: must be at least 0, not -1"),
        ({"max_queue_depth": 0}, f"{PATH}.max_queue_depth: must be at least 1, not 0"),
        ({"max_queue_age_s": 0}, f"{PATH}.max_queue_age_s: must be more than 0, not 0.0"),
        ({"max_wait_s": -2}, f"{PATH}.max_wait_s: must be more than 0, not -2.0"),
        ({"max_wait_s": float("inf")}, f"{PATH}.max_wait_s: must be a finite number, not inf"),
        ({"max_wait_s": "soon"}, f"{PATH}.max_wait_s: expected `float`, got `str`"),
        ({"always": 1}, f"{PATH}.always: expected `bool`, got `int`"),
        ({"max_queue_dept": 4}, f"{PATH}.max_queue_dept: unknown setting; did you mean `max_queue_depth`?"),
        ({"max_wait_s": 5, "max_queue_depth": 0}, f"{PATH}.max_queue_depth: must be at least 1, not 0"),
    ],
)
def test_mistakes_are_refused_whole(change: dict[str, Any], says: str) -> None:
    """With the path of the setting, as in a graph."""
    with pytest.raises(InvalidRequestError) as error:
        changed(Disagg(), DisaggChange(change))
    assert error.value.message == says
