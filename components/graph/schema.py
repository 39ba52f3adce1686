"""Every setting there is, with its default and its meaning. docs/settings.md is generated from this module.

The comment after a field is its documentation. Units are part of the names. Unknown keys are refused.
"""

from typing import Any, Literal

import msgspec


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Root of all settings."""


class Http(Settings, frozen=True):
    """The OpenAI-compatible endpoint."""

    host: str = "127.0.0.1"  # address to listen on; loopback unless told otherwise
    port: int = 8181  # TCP port; refused by the name of its holder when taken
    tls_cert_file: str | None = None  # PEM certificate chain; with tls_key_file turns on HTTPS
    tls_key_file: str | None = None  # PEM private key
    max_body_bytes: int = 8 * 1024 * 1024  # longer request bodies get 413, from a router too
    max_inflight_requests: int = 4096  # per processor; more get 429
    max_choices: int = 128  # largest `n` a request may ask for
    max_logprobs: int = 20  # largest `top_logprobs` or `logprobs` a request may ask for
    request_timeout_s: float = 600.0  # a whole answer, from receipt to last byte; then 504
    first_token_timeout_s: float = 120.0  # a worker may stand still before a first token; then the next one is tried
    inactivity_timeout_s: float = 30.0  # a worker may stand still between two tokens; then the next one is tried
    client_stall_timeout_s: float = 30.0  # a client that sends or reads nothing for so long is cut off, by a router too
    max_replays: int = 3  # how often one request may move to another worker before it fails
    isolate_api_keys: bool = False  # true: requests of different API keys never share cached KV


class SimEngine(Settings, frozen=True, tag_field="kind", tag="sim"):
    """The simulated engine: real scheduling and caching, no model; for tests, planning and CI."""

    timing: str = "h200-8b"  # name of a built-in timing table, or the path of a JSON file like it
    speed: float = 1.0  # 2.0 runs twice as fast as the timing table says
    max_model_len: int = 8192  # longest prompt plus output, in tokens
    kv_blocks: int = 4096  # KV blocks it holds
    max_running_requests: int = 256  # batched at once; others wait
    max_batched_tokens: int = 8192  # tokens computed in one step (chunked prefill)
    output: Literal["echo", "random"] = "random"  # what it says: the prompt again, or seeded random tokens


class VllmEngine(Settings, frozen=True, tag_field="kind", tag="vllm"):
    """A real vLLM engine. Any vLLM engine argument may stand beside `kind`, such as `max_model_len: 4096`."""

    args: dict[str, Any] = {}  # vLLM engine arguments, by their Python names; the loader collects them here
    kv_cache_gb: float = 1.0  # CPU only: memory for KV, in GiB (VLLM_CPU_KVCACHE_SPACE)


class ProcessorSettings(Settings, frozen=True):
    """HTTP edge processes."""

    replicas: int = 1  # they share one port; 0: other machines' parts of the graph run them


class Disagg(Settings, frozen=True):
    """When a decode worker has a prompt prefilled elsewhere. `penstock disagg RULE=VALUE` changes these while it runs."""

    enabled: bool = True  # false: decode workers compute every prompt themselves
    max_local_prefill_tokens: int = 512  # prompts with more tokens that are cached nowhere near may be prefilled remotely
    max_queue_depth: int = 8  # with so many jobs waiting, decode workers prefill themselves
    max_queue_age_s: float = 2.0  # likewise when the oldest waiting job is older
    max_wait_s: float = 10.0  # a job not done by then is computed locally after all
    always: bool = False  # true: do not ask whether it pays, only the thresholds above count


class DecodeSettings(Settings, frozen=True):
    """Decode workers."""

    replicas: int = 1  # one engine each; 0: other machines' parts of the graph run them
    engine: VllmEngine | SimEngine = VllmEngine()  # what computes the tokens
    gpus: list[int] | None = None  # devices they may use, in order; default: all visible ones
    drain_timeout_s: float = 30.0  # how long a stopping worker may finish its requests
    disagg: Disagg = Disagg()  # remote prefill; counts where the graph has prefill workers


class PrefillSettings(Settings, frozen=True):
    """Prefill workers: they compute the KV of long prompts for decode workers, which load it from LMCache."""

    replicas: int = 1  # one engine each
    engine: VllmEngine | SimEngine | None = None  # default: the decode workers' settings
    gpus: list[int] | None = None  # devices they may use, in order; default: what the decode workers leave
    drain_timeout_s: float = 30.0  # how long a stopping worker may finish its jobs
    max_batched_tokens: int = 16_384  # prompt tokens taken from the queue at once; one longer job is taken alone
    max_deliveries: int = 3  # a job that so many workers gave back or died of goes to the dead letters
    ack_wait_s: float = 5.0  # a job whose worker says nothing for so long goes to another
    max_queue_jobs: int = 1024  # more are refused, and computed locally


class LMCache(Settings, frozen=True):
    """An LMCache server beside the engines of one host; what one engine computed, all can load."""

    host: str = "127.0.0.1"  # where it listens; engines of this host connect to it
    port: int = 5555  # its TCP port for engines
    http_port: int = 5556  # its TCP port for health, metrics and control
    chunk_tokens: int = 64  # unit of storing and loading, a multiple of kv.block_size; LMCache's own default is 256
    l1_gb: float = 2.0  # memory for KV, in GiB
    eviction_policy: Literal["LRU", "ARC", "IsolatedLRU", "noop"] = "LRU"  # what goes when it is full
    l2: list[dict[str, Any]] = []  # slower stores behind it, as `--l2-adapter` takes them: [{type: fs, base_path: /kv}]
    coordinator: bool = True  # LMCache's coordinator beside it, which tells the cache controller what is held; false: none
    coordinator_port: int = 0  # its TCP port; 0: a free one, which `penstock cache-controller` finds by itself
    timeout_s: float = 5.0  # an engine that waits longer for it goes on without it
    args: dict[str, Any] = {}  # further options of `lmcache server`, such as {max-workers: 4}


class RouterSettings(Settings, frozen=True):
    """Router processes: they know who holds which KV blocks, and choose the worker for each request."""

    replicas: int = 1  # each knows everything; they share the load of questions; 0: they run on other machines
    embedded: bool = False  # true: none of these; a router inside each processor, which is asked without a message
    policy: Literal["kv", "approximate", "round_robin", "random", "least_loaded"] = "kv"  # how workers are chosen
    session_ttl_s: float = 0.0  # more than 0: requests of one session keep their worker while used within so many seconds
    temperature_s: float = 0.0  # kv: 0 takes the cheapest worker; more spreads choices over costs that differ by about this
    approximate_ttl_s: float = 120.0  # approximate: how long a routed prompt counts as cached where it went
    occupancy_weight: float = 1.0  # cost: how much a worker's time counts beside the request's own wait
    decode_weight: float = 0.1  # cost: a token of context being decoded, against a token to compute
    max_index_pairs: int = 20_000_000  # most pairs of block and holder the index keeps; further ones are refused and counted
    http_host: str = "127.0.0.1"  # address of the queries and metrics
    http_port: int = 8182  # their TCP port; replica i listens on port + i
    timeout_s: float = 0.5  # a processor that hears nothing for so long chooses by load itself

    @property
    def wants_kv_events(self) -> bool:
        """Whether the policy goes by what workers tell of their KV blocks."""
        return self.policy == "kv"


class JobsSettings(Settings, frozen=True):
    """Chat jobs: a durable queue at a port of its own, and workers that run them against this graph's endpoint."""

    replicas: int = 1  # queue servers: one, or 0 where another machine's part of the graph runs it
    http_host: str = "127.0.0.1"  # address of the queue's HTTP and WebSocket server
    http_port: int = 8788  # its TCP port
    public_url: str | None = None  # where workers reach it, for links in frames; default: as they address it
    workers: int = 1  # job workers this machine runs beside the queue
    worker_capacity: int = 16  # jobs each of them runs at a time
    config_id: str = "default"  # the jobs they take, beside those without a config
    lease_s: float = 30.0  # a worker silent for so long loses its job to another
    max_attempts: int = 5  # a job given to so many workers and never finished fails, and is kept as a dead letter
    hold_timeout_s: float = 300.0  # a held call or a transient job without a result by then gets 504
    max_body_bytes: int = 32 * 1024 * 1024  # longest submission or result
    max_jobs: int = 1_000_000  # unfinished jobs; more are refused with 429
    max_queue_bytes: int = 8 * 1024**3  # of unfinished jobs on disk; more are refused with 429
    keep_s: float = 7 * 86400.0  # how long finished jobs, their results and dead letters are kept
    max_kept_bytes: int = 8 * 1024**3  # of finished jobs on disk; the oldest go


class Components(Settings, frozen=True):
    """Which processes the graph consists of."""

    processor: ProcessorSettings | None = None  # HTTP edge
    router: RouterSettings | None = None  # chooses workers by their KV; without it processors choose by load
    decode: DecodeSettings | None = None  # decode workers
    prefill: PrefillSettings | None = None  # prefill workers; they need `lmcache`
    jobs: JobsSettings | None = None  # chat jobs: queue and job workers


class Kv(Settings, frozen=True):
    """KV cache facts all processes share."""

    block_size: int = 32  # tokens a KV block; vLLM on CPU takes multiples of 32


class Nats(Settings, frozen=True):
    """A NATS server of yours.

    Secrets come from the environment: PENSTOCK_NATS_TOKEN, or PENSTOCK_NATS_USER and PENSTOCK_NATS_PASSWORD.
    """

    url: str  # nats://host:4222 or tls://host:4222, several separated by commas
    credentials_file: str | None = None  # NATS .creds file (JWT and nkey seed)
    nkey_seed_file: str | None = None  # nkey seed, when no JWT is used
    tls_ca_file: str | None = None  # PEM bundle that signs the server's certificate
    tls_cert_file: str | None = None  # PEM client certificate
    tls_key_file: str | None = None  # PEM client key


class Supervision(Settings, frozen=True):
    """How processes are started, watched and stopped."""

    start_timeout_s: float = 300.0  # a process not ready by then is killed and counts as failed
    restart_backoff_s: float = 1.0  # wait before the first restart; doubles up to max_restart_backoff_s
    max_restart_backoff_s: float = 30.0  # longest wait before a restart
    max_restarts: int = 10  # in a row, without a healthy minute between; then the process stays failed
    silence_timeout_s: float = 3.0  # requests leave a worker silent for so long; statuses come once a second
    status_timeout_s: float = 10.0  # a process silent for so long is killed and restarted
    stop_timeout_s: float = 40.0  # from the request to stop until processes are killed
    reuse_gpus: bool = False  # true: workers may share GPUs when there are too few
    warm_start: bool = True  # import vLLM once for all workers of the graph instead of once a process


class Telemetry(Settings, frozen=True):
    """Logs, and traces of requests."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"  # least severe level to write
    log_format: Literal["text", "json"] = "text"  # one line each; json for machines
    otlp_endpoint: str = ""  # an OpenTelemetry collector that gets a trace of each request, as http://127.0.0.1:4318
    trace_ratio: float = 1.0  # the share of requests to trace, 0 to 1; a client that sends a `traceparent` decides itself


class Graph(Settings, frozen=True):
    """One graph: a model and the processes that serve it."""

    model: str  # `demo`, a folder, or a Hugging Face model id
    components: Components  # the processes
    name: str = "penstock"  # tells graphs on one machine or one NATS server apart; the file's name by default
    host: str = ""  # where several machines run parts of one graph: this part's label, put into its names (decode-a-0)
    served_model_name: str | None = None  # what clients call the model; default: `model` as written
    nats: str | Nats = "embedded"  # `embedded` starts a server for this graph; else a URL or a map
    http: Http = Http()  # the OpenAI endpoint
    kv: Kv = Kv()  # KV cache facts
    lmcache: LMCache | None = None  # share KV between engines: a map, empty for the defaults
    supervision: Supervision = Supervision()  # starting, watching, stopping
    telemetry: Telemetry = Telemetry()  # logs and traces

    @property
    def model_name(self) -> str:
        """The name clients use."""
        return self.served_model_name or self.model

    @property
    def part(self) -> str:
        """The name of what this machine runs of the graph: the graph's, and the host label where there is one."""
        return f"{self.name}-{self.host}" if self.host else self.name

    @property
    def disaggregated(self) -> bool:
        """Whether decode workers may leave prompts to prefill workers."""
        return self.components.prefill is not None

    @property
    def routers(self) -> int:
        """How many routers this machine runs, in processes of their own or inside its processors."""
        router, processor = self.components.router, self.components.processor
        if router is None or not router.embedded:
            return router.replicas if router else 0
        return processor.replicas if processor else 0

    @property
    def tells_kv(self) -> bool:
        """Whether workers tell which KV they hold: only where somebody goes by it."""
        router = self.components.router
        return self.disaggregated or (router is not None and router.wants_kv_events)

    @property
    def only_queues(self) -> bool:
        """Whether there is nothing in it but a job queue, whose workers come from elsewhere."""
        parts, jobs = self.components, self.components.jobs
        others = any(getattr(parts, name) is not None for name in parts.__struct_fields__ if name != "jobs")
        return jobs is not None and not jobs.workers and not others

    def process_name(self, component: str, index: int) -> str:
        """Return the name of a process, unique in all parts of the graph: ``decode-0``, or ``decode-a-0`` on host a."""
        return f"{component}-{self.host}-{index}" if self.host else f"{component}-{index}"


class CacheController(Settings, frozen=True):
    """The cache controller, which belongs to no graph: a flag sets each of these, such as `--monitor-port 9001`."""

    host: str = "127.0.0.1"  # address of the REST API and of the monitor ports; loopback unless told otherwise
    port: int = 9000  # TCP port of the REST API
    monitor_port: int = 9001  # LMCache workers push what they hold here: their `controller_pull_url`
    reply_port: int = 0  # they register here: their `controller_reply_url`; 0: monitor_port + 1
    heartbeat_port: int = 0  # they beat here, and are told so when they register; 0: monitor_port + 2
    coordinators: list[str] = []  # URLs of `lmcache coordinator`s, whose multi-process servers are instances, too
    request_timeout_s: float = 10.0  # a call that has to ask workers or servers ends by then: 502 or 504
    worker_timeout_s: float = 30.0  # a worker silent for half of it is asked for its health; for all of it, forgotten
    max_workers: int = 10_000  # further registrations are refused and counted
    max_chunks: int = 20_000_000  # most chunk hashes kept; further ones are refused and counted
    max_body_bytes: int = 32 * 1024 * 1024  # longer request bodies get 413
    chunk_size: int = 256  # tokens a chunk, as in the engines' LMCache; others are found out and reported
    hash_algorithm: Literal["builtin", "sha256_cbor"] = "builtin"  # the engines' `pre_caching_hash_algorithm`
    hash_seed: str | None = None  # the engines' PYTHONHASHSEED; default: this process's, else 0
    state_file: str | None = None  # who is registered, for a restart; default: a file of this port's among penstock's states
    log_level: Literal["debug", "info", "warning", "error"] = "info"  # least severe level to write
    log_format: Literal["text", "json"] = "text"  # one line each; json for machines


class ControllerSettings(Settings, frozen=True):
    """The worker controller, which no graph file holds: `penstock controller` has a flag for each."""

    host: str = "127.0.0.1"  # address of the REST API and of the engines; others than loopback need PENSTOCK_API_KEY
    port: int = 8000  # TCP port of the REST API
    workers: int | None = None  # ranks in the pool; default: one per visible GPU, on a CPU one per NUMA node
    first_engine_port: int = 8001  # engines take the lowest free port from here
    last_engine_port: int = 8099  # up to here
    graph: list[str] = []  # graphs that engines with a role may join: files, or names of graphs running on this machine
    kv_cache_gb: float = 1.0  # CPU only: memory for KV of each rank, in GiB, unless a request says kv_cache_memory_bytes
    trust_remote_code: bool = False  # true: requests may have code loaded (trust_remote_code, plugins, connectors)
    max_load_s: float = 1800.0  # an engine that does not answer by then is failed
    stop_timeout_s: float = 30.0  # from the request to stop an engine until its processes are killed
    warm_timeout_s: float = 300.0  # a rank that is not warm by then is started again
    reset_timeout_s: float = 20.0  # a rank that has not given back its memory by then is replaced
    leak_tolerance_mb: float = 256.0  # a rank that holds so much more than before its first engine is replaced
    max_ipc_bytes: int = 1 << 30  # longest message between an engine's core and a rank
