"""One example of every message, with every field set, for the golden bytes."""

from components.wire.errors import ErrorCode, ErrorReply
from components.wire.jobs import FenceKey, Job, JobRecord, JobStatus
from components.wire.kv import ChunksChanged, KvBatch, KvCleared, KvRemoved, KvStored, SnapshotChunk, SnapshotRequest, Tier
from components.wire.messages import (
    Cancel,
    FinishReason,
    GenerateRequest,
    Message,
    OutputParsing,
    PositionLogprobs,
    Sampling,
    StructuredOutputs,
    TokenBatch,
    TokenDelta,
    TokenLogprob,
    ToolCallDelta,
)
from components.wire.prefill import (
    DisaggChange,
    DisaggRules,
    PrefillCancel,
    PrefillJob,
    PrefillProgress,
    PrefillState,
)
from components.wire.process import (
    Control,
    ControlVerb,
    MetricFamily,
    MetricSample,
    MetricsReply,
    ProcessState,
    ProcessStatus,
    WorkerLoad,
    WorkerRole,
    WorkerStatus,
)
from components.wire.queueing import DeadLetter
from components.wire.routing import (
    RouteCandidate,
    RouteEvent,
    RouteNotice,
    RouteNotices,
    RouteReply,
    RouteRequest,
    Tokenized,
    TokenizeQuery,
    Trust,
)

_ERROR = ErrorReply(ErrorCode.OVERLOADED, "try again later", "n", 1.5)
_STRUCTURED = StructuredOutputs('{"type": "object"}', True, "[a-z]+", ("yes", "no"), "root ::= 'a'", "{}")
_SAMPLING = Sampling(
    max_tokens=30,
    temperature=0.5,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    presence_penalty=0.1,
    frequency_penalty=-0.1,
    repetition_penalty=1.1,
    seed=7,
    stop=("\n\n", "END"),
    stop_token_ids=(2, 3),
    include_stop_str_in_output=True,
    ignore_eos=True,
    min_tokens=4,
    logprobs=2,
    logit_bias={5: -100.0},
    allowed_token_ids=(1, 2, 3),
    bad_words=("no",),
    skip_special_tokens=False,
    spaces_between_special_tokens=False,
    structured_outputs=_STRUCTURED,
)
_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_PARSING = OutputParsing("[]", '[{"role": "user", "content": "?"}]', '{"enable_thinking": false}')
_LOGPROBS = PositionLogprobs(TokenLogprob(9, " a", -0.5, 1), (TokenLogprob(9, " a", -0.5, 1), TokenLogprob(8, "b", -1.5, 2)))
_DELTA = TokenDelta(
    request_id="r-0-0",
    offset=3,
    token_ids=[9],
    text=" a",
    logprobs=[_LOGPROBS],
    finish_reason=FinishReason.TOOL_CALLS,
    stop_reason="END",
    cached_tokens=64,
    tool_calls=(ToolCallDelta(0, "call-1", "weather", '{"city"'),),
    error=_ERROR,
)
_LOAD = WorkerLoad(3, 1, 0.25, 1000, 640, 200)
_WORKER = WorkerStatus("demo", 4096, 32, 512, _LOAD, True, WorkerRole.PREFILL, "lmcache-0", True)
_CANDIDATE = RouteCandidate(
    "decode-0", Trust.DEGRADED, 10, 12, 3, 480, 4, 1000, 9000, 0.012, 0.001, 0.03, 0.02, 0.005, 0.068, "lmcache-0"
)

_JOB = Job("job-1", "default", 1790000000.5, b'{"messages": []}', "payload-job-1-a1b2")

EXAMPLES: dict[str, Message | ErrorReply] = {
    "Cancel": Cancel(["r-0-0", "r-1-0"]),
    "Control": Control(ControlVerb.DRAIN),
    "FenceKey": FenceKey(b"\x00\xff"),
    "JobRecord": JobRecord(
        _JOB, JobStatus.FAILED, 3, 1790000100.5, b"{}", "result-job-1-7-3-ab", "no", "7-3-ab", "worker-1"
    ),
    "DeadLetter": DeadLetter("job-1", "all", "taken 5 times and never finished", 6, 1790000000.5, 1790000100.5, b"\x80"),
    "ErrorReply": _ERROR,
    "GenerateRequest": GenerateRequest(
        "r-0-0", "processor-0", "demo", [1, 2, 300, 70000], _SAMPLING, 1790000000.5, "salt", 2, _PARSING, _TRACE
    ),
    "KvBatch": KvBatch(
        "decode-0",
        "a1b2",
        3,
        [KvStored([11, 2**60 - 1], 10, Tier.HOST), KvRemoved([7, 8], Tier.DISK, [None, 7]), KvCleared()],
    ),
    "SnapshotRequest": SnapshotRequest("s1", "penstock.g.kv_chunks.router-0"),
    "ChunksChanged": ChunksChanged("lmcache-0", [2**64 - 1], [7]),
    "SnapshotChunk": SnapshotChunk("s1", "decode-0", "a1b2", 3, 1, True, False, [KvStored([11, 12])]),
    "PrefillJob": PrefillJob("r-0-0", "decode-0", "demo", [1, 2, 300], 1790000000.5, 1790000010.5, "salt", _TRACE),
    "PrefillProgress": PrefillProgress(
        "r-0-0", "prefill-0", PrefillState.FAILED, 1024, 0.002, 0.25, 0.004, ErrorReply(ErrorCode.INTERNAL, "why")
    ),
    "PrefillCancel": PrefillCancel(["r-0-0", "r-1-0"]),
    "DisaggChange": DisaggChange({"max_local_prefill_tokens": 1000, "always": True}),
    "DisaggRules": DisaggRules("decode-0", {"enabled": True, "max_wait_s": 10.0}, _ERROR),
    "RouteRequest": RouteRequest("r", "demo", [1, 2], 70, 1790000000.5, "session-1", ["decode-1"], True),
    "RouteReply": RouteReply("kv", _CANDIDATE, [_CANDIDATE], "router-0"),
    "RouteNotice": RouteNotice(
        "r", RouteEvent.FIRST_TOKEN, "decode-0", 70, 30, 1790000000.5, [1, 2], 0.05, 64, "router-0", "s", 3
    ),
    "RouteNotices": RouteNotices([RouteNotice("r", RouteEvent.FINISHED, "decode-0")]),
    "MetricsReply": MetricsReply(
        "decode-0",
        [MetricFamily("penstock_x", "counter", "What it counts.", [MetricSample("penstock_x_total", {"a": "b"}, 3.0)])],
    ),
    "ProcessStatus": ProcessStatus("decode-0", "decode", "a1b2", 4242, "host", ProcessState.READY, "vllm 0.32.0", _WORKER),
    "TokenizeQuery": TokenizeQuery(b'{"prompt": "hi"}'),
    "Tokenized": Tokenized([1, 2, 300]),
    "TokenBatch": TokenBatch("decode-0", "a1b2", 17, [_DELTA, TokenDelta("r-1-0", 0, [4, 5], "two")]),
}
