"""Token deltas cut into messages that a server takes."""

from itertools import chain

import hypothesis.strategies as st
from hypothesis import given

from components.decode.outbox import portions
from components.wire.errors import ErrorCode
from components.wire.messages import TokenDelta, encode

DELTA = st.builds(TokenDelta, st.text(max_size=8), st.integers(0, 2**40), text=st.text(max_size=60))


@given(st.lists(DELTA, max_size=40), st.integers(300, 600))
def test_portions_hold_everything_in_order(deltas: list[TokenDelta], max_bytes: int) -> None:
    """None is empty, none takes more than asked, and none could have taken the next delta."""
    cut = list(portions(deltas, max_bytes))
    assert list(chain(*cut)) == deltas
    sizes = [sum(len(encode(delta)) for delta in portion) for portion in cut]
    assert all(portion for portion in cut)
    assert max(sizes, default=0) <= max_bytes
    for size, following in zip(sizes, cut[1:], strict=False):
        assert size + len(encode(following[0])) > max_bytes


def test_what_no_message_holds_ends_its_request() -> None:
    """The others go on."""
    deltas = [TokenDelta("a"), TokenDelta("b", 7, text="x" * 1000), TokenDelta("c")]
    ((first, second, third),) = portions(deltas, 500)
    assert (first, third) == (deltas[0], deltas[2])
    assert (second.request_id, second.offset, second.text) == ("b", 7, "")
    assert second.error is not None
    assert second.error.code is ErrorCode.INTERNAL
