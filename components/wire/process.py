"""What processes say of themselves, and are told: that they live and what they offer, their metrics, and to drain."""

from enum import StrEnum

from components.wire.messages import Message


class ProcessState(StrEnum):
    """Where a process stands in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class WorkerLoad(Message, frozen=True):
    """What an engine is doing now, and has done since it started.

    Attributes:
        running_requests: being computed.
        waiting_requests: queued in the worker or its engine.
        kv_usage: share of KV blocks in use, 0 to 1.
        prompt_tokens: prompt tokens processed, cached ones included.
        cached_tokens: of these, taken from the prefix cache or another engine.
        output_tokens: tokens generated.
    """

    running_requests: int = 0
    waiting_requests: int = 0
    kv_usage: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class WorkerRole(StrEnum):
    """What a worker takes: requests, or prefill jobs."""

    DECODE = "decode"
    PREFILL = "prefill"


class WorkerStatus(Message, frozen=True):
    """What a ready worker offers.

    Attributes:
        model: the name it serves.
        max_model_len: longest prompt plus output, in tokens.
        block_size: tokens a KV block.
        kv_blocks: KV blocks the engine holds in all.
        load: now.
        tool_parser: whether it can parse tool calls (`tool_choice: auto`).
        role: what it takes.
        store: the name of the LMCache server it shares KV through; empty without one.
        reasoning_parser: whether it can tell the model's reasoning from its answer.
    """

    model: str
    max_model_len: int
    block_size: int
    kv_blocks: int
    load: WorkerLoad = WorkerLoad()
    tool_parser: bool = False
    role: WorkerRole = WorkerRole.DECODE
    store: str = ""
    reasoning_parser: bool = False


class ProcessStatus(Message, frozen=True):
    """A process tells that it lives, and how.

    Attributes:
        name: unique in the graph, such as ``decode-0``.
        component: ``decode``, ``processor``, …
        incarnation: changes whenever the process does.
        pid: process id on its host.
        host: host name.
        state: where it stands.
        detail: for a person: what it is doing, or why it failed.
        worker: set by workers that are ready or draining.
    """

    name: str
    component: str
    incarnation: str
    pid: int
    host: str
    state: ProcessState
    detail: str = ""
    worker: WorkerStatus | None = None


class ControlVerb(StrEnum):
    """What a process can be told to do."""

    DRAIN = "drain"


class Control(Message, frozen=True):
    """An instruction to one process."""

    verb: ControlVerb


class MetricSample(Message, frozen=True):
    """One sample of a metric family."""

    name: str
    labels: dict[str, str]
    value: float


class MetricFamily(Message, frozen=True):
    """One Prometheus metric family."""

    name: str
    type: str
    help: str
    samples: list[MetricSample]


class MetricsReply(Message, frozen=True):
    """All metrics of one process."""

    process: str
    families: list[MetricFamily]
