"""Every NATS subject penstock uses, in one place.

A subject is ``penstock.<graph>.<what>[.<who>]``; ``<graph>`` keeps several graphs on one server apart. Names given by
users become one safe token first (`token`), because NATS reads ``.``, ``*`` and ``>`` in them.
"""

from urllib.parse import quote, unquote

ROOT = "penstock"


def name_of(token_: str) -> str:
    """Return the name that `token` made `token_` of."""
    return unquote(token_.replace("=", "%"))


def token(name: str) -> str:
    """Return `name` as one subject token: letters, digits, ``_`` and ``-`` stay, every other byte becomes ``=XX``.

    Raises:
        ValueError: `name` is empty.
    """
    if not name:
        raise ValueError("a name used in a NATS subject must not be empty")
    return quote(name, safe="-_").replace(".", "%2E").replace("~", "%7E").replace("%", "=")


def stream_name(subject: str) -> str:
    """Return the name of the JetStream stream that keeps the messages on `subject`, which ends in ``*`` or ``>``."""
    return subject.removesuffix(".*").removesuffix(".>").replace(".", "_")


class Subjects:
    """The subjects of one graph."""

    def __init__(self, graph: str) -> None:
        self._prefix = f"{ROOT}.{token(graph)}"

    def generate(self, worker: str) -> str:
        """`GenerateRequest` to one worker; a refusal is answered by `ErrorReply`, else the tokens are the answer."""
        return f"{self._prefix}.generate.{token(worker)}"

    def cancel(self, worker: str) -> str:
        """`Cancel` to one worker; no answer."""
        return f"{self._prefix}.cancel.{token(worker)}"

    def tokens(self, processor: str) -> str:
        """`TokenBatch` from any worker to one processor."""
        return f"{self._prefix}.tokens.{token(processor)}"

    def status(self, name: str) -> str:
        """`ProcessStatus` of one process, about once a second and at each change of state."""
        return f"{self._prefix}.status.{token(name)}"

    def who(self, name: str) -> str:
        """An empty request by a newcomer of this name; a living process that has it answers with its `ProcessStatus`."""
        return f"{self._prefix}.who.{token(name)}"

    def every_status(self) -> str:
        """`ProcessStatus` of every process."""
        return f"{self._prefix}.status.*"

    def ask_status(self) -> str:
        """An empty message to all: publish your `ProcessStatus` now (sent by a newcomer)."""
        return f"{self._prefix}.ask_status"

    def control(self, name: str) -> str:
        """`Control` to one process (drain); answered by an empty message."""
        return f"{self._prefix}.control.{token(name)}"

    def scrape(self) -> str:
        """An empty request to all; each process answers with a `MetricsReply`."""
        return f"{self._prefix}.scrape"

    def kv_events(self, worker: str) -> str:
        """`KvBatch` of one worker."""
        return f"{self._prefix}.kv.{token(worker)}"

    def every_kv_event(self) -> str:
        """`KvBatch` of every worker."""
        return f"{self._prefix}.kv.*"

    def kv_snapshot(self, worker: str) -> str:
        """`SnapshotRequest` to one worker; its `SnapshotChunk` messages go where the request says."""
        return f"{self._prefix}.kv_snapshot.{token(worker)}"

    def kv_chunks(self, router: str) -> str:
        """`SnapshotChunk` from any worker to one router."""
        return f"{self._prefix}.kv_chunks.{token(router)}"

    def store_chunks(self, store: str) -> str:
        """`ChunksChanged` of one LMCache server."""
        return f"{self._prefix}.store_chunks.{token(store)}"

    def route(self) -> str:
        """`RouteRequest` to any router replica; answered by `RouteReply` or `ErrorReply`."""
        return f"{self._prefix}.route"

    def route_notices(self) -> str:
        """`RouteNotices` to every router replica."""
        return f"{self._prefix}.route_notices"

    def tokenize(self) -> str:
        """`TokenizeQuery` to any processor; answered by `Tokenized` or `ErrorReply`."""
        return f"{self._prefix}.tokenize"

    def prefill_progress(self, worker: str) -> str:
        """`PrefillProgress` from any prefill worker to one decode worker."""
        return f"{self._prefix}.prefill_progress.{token(worker)}"

    def prefill_cancel(self) -> str:
        """`PrefillCancel` to every prefill worker."""
        return f"{self._prefix}.prefill_cancel"

    def disagg(self) -> str:
        """`DisaggChange` to every decode worker; each answers with its `DisaggRules`."""
        return f"{self._prefix}.disagg"

    def queued(self, name: str, lane: str, job_id: str) -> str:
        """One job of one lane of a work queue; a JetStream stream keeps it until it is done."""
        return f"{self._prefix}.queue.{token(name)}.{token(lane)}.{token(job_id)}"

    def lane(self, name: str, lane: str) -> str:
        """Every job of one lane of a work queue."""
        return f"{self._prefix}.queue.{token(name)}.{token(lane)}.*"

    def job(self, name: str, job_id: str) -> str:
        """One job of a work queue, in whichever lane it is."""
        return f"{self._prefix}.queue.{token(name)}.*.{token(job_id)}"

    def queue(self, name: str) -> str:
        """Every job of a work queue."""
        return f"{self._prefix}.queue.{token(name)}.>"

    def dead_letter(self, name: str, job_id: str) -> str:
        """`DeadLetter` of one job of a work queue; a JetStream stream keeps the last one of each job."""
        return f"{self._prefix}.dead.{token(name)}.{token(job_id)}"

    def every_dead_letter(self, name: str) -> str:
        """`DeadLetter` of every job of a work queue."""
        return f"{self._prefix}.dead.{token(name)}.*"

    def bucket(self, name: str) -> str:
        """Return the name of a JetStream key-value bucket or object store; `name` is letters and digits."""
        return f"{self._prefix}.{token(name)}".replace(".", "_")
