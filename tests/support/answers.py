"""A message for tests of what carries messages."""

from components.wire.messages import Message


class Answered(Message, frozen=True):
    """Whoever answers says so."""

    by: str
