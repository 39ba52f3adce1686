"""Disaggregation in a graph: what cannot work is refused when the graph is read."""

from typing import Any

import pytest

from components.graph.load import GraphError, graph_from_raw

DISAGG = "components.decode.disagg"
PREFILL = "components.prefill"


def raw() -> dict[str, Any]:
    """Return a good disaggregated graph."""
    return {"model": "demo", "lmcache": {}, "components": {"processor": {}, "decode": {}, "prefill": {}}}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lmcache="], "lmcache: is missing; prefill workers hand KV to decode workers through it (`lmcache: {}`)"),
        (["lmcache.chunk_tokens=80"], "lmcache.chunk_tokens: must be a multiple of kv.block_size 32, not 80"),
        (["lmcache.chunk_tokens=0"], "lmcache.chunk_tokens: must be a multiple of kv.block_size 32, not 0"),
        (["lmcache.chunk_tokens=-32"], "lmcache.chunk_tokens: must be a multiple of kv.block_size 32, not -32"),
        (["kv.block_size=48"], "lmcache.chunk_tokens: must be a multiple of kv.block_size 48, not 64"),
        (["lmcache.port=0"], "lmcache.port: must be 1 to 65535, not 0"),
        (["lmcache.http_port=65536"], "lmcache.http_port: must be 1 to 65535, not 65536"),
        (["lmcache.port=7", "lmcache.http_port=7"], "lmcache.http_port: must differ from lmcache.port, 7"),
        (["lmcache.l1_gb=0"], "lmcache.l1_gb: must be more than 0, not 0.0"),
        (["lmcache.timeout_s=-1"], "lmcache.timeout_s: must be more than 0, not -1.0"),
        (["lmcache.l2=[{base_path: /kv}]"], "lmcache.l2[0]: needs a `type`, such as fs or resp"),
        (["lmcache.l2=[{type: fs}, {type: 3}]"], "lmcache.l2[1]: needs a `type`, such as fs or resp"),
        (
            ["prefill.engine={kind: sim}"],
            f"{PREFILL}.engine.kind: must be that of the decode workers, or they cannot share KV",
        ),
        (["prefill.max_batched_tokens=0"], f"{PREFILL}.max_batched_tokens: must be at least 1, not 0"),
        (["prefill.max_deliveries=0"], f"{PREFILL}.max_deliveries: must be at least 1, not 0"),
        (["prefill.max_queue_jobs=-1"], f"{PREFILL}.max_queue_jobs: must be at least 1, not -1"),
        (["prefill.ack_wait_s=0"], f"{PREFILL}.ack_wait_s: must be more than 0, not 0.0"),
        (["prefill.drain_timeout_s=0"], f"{PREFILL}.drain_timeout_s: must be more than 0, not 0.0"),
        (["prefill.engine.max_model_len=0"], f"{PREFILL}.engine.max_model_len: must be at least 1, or -1"),
        (["decode.disagg.max_local_prefill_tokens=-1"], f"{DISAGG}.max_local_prefill_tokens: must be at least 0, not -1"),
        (["decode.disagg.max_queue_depth=0"], f"{DISAGG}.max_queue_depth: must be at least 1, not 0"),
        (["decode.disagg.max_queue_age_s=0"], f"{DISAGG}.max_queue_age_s: must be more than 0, not 0.0"),
        (["decode.disagg.max_wait_s=.nan"], f"{DISAGG}.max_wait_s: must be a finite number, not nan"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], says: str) -> None:
    """One line, the path first."""
    with pytest.raises(GraphError) as error:
        graph_from_raw(raw(), overrides)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    "overrides",
    [
        ["decode.disagg.max_local_prefill_tokens=0"],
        ["lmcache.chunk_tokens=32"],
        ["lmcache.port=65535"],
        ["prefill="],
        ["decode.engine={kind: sim}"],
        ["decode.engine={kind: sim}", "prefill.engine={kind: sim, speed: 2}"],
        ["lmcache.l2=[{type: fs, base_path: /kv}]"],
    ],
)
def test_what_can_work_is_taken(overrides: list[str]) -> None:
    """Border values; a shared cache without prefill workers; engines of one kind with other settings."""
    assert graph_from_raw(raw(), overrides).lmcache is not None
