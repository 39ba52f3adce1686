"""What a work queue keeps of a job that could not be done."""

from components.wire.messages import Message


class DeadLetter(Message, frozen=True):
    """A job that was given up, kept for a person to look at, do again or drop.

    Attributes:
        id: the job's, as it was put.
        lane: of the queue, where it was put.
        reason: why it was given up.
        deliveries: how often it was taken.
        put_unix_s: when it was put.
        died_unix_s: when it was given up.
        data: the job as it was put; no message of the queue's kind when that is the reason.
    """

    id: str
    lane: str
    reason: str
    deliveries: int
    put_unix_s: float
    died_unix_s: float
    data: bytes
