"""Engines over several ranks of a pool of four: any free ones, several at once, each with process groups of its own."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.model import demo
from tests.support.controller import Controller

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
CONTROLLER_FLAGS = ("--workers", "4", "--kv-cache-gb", "0.1")


@pytest.fixture(autouse=True)
def _same_processes(shared: Controller) -> Iterator[None]:
    """After each test the ranks are the processes they were."""
    before = shared.pids()
    yield
    assert shared.pids() == before


def test_two_engines_of_two_ranks_at_once(pool: Controller) -> None:
    """Created at the same time, asked at the same time, deleted one by one: each computes what one rank computes."""
    alone = pool.complete(pool.create("alone")["api_url"])
    pool.delete("alone")
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda name: pool.create(name, tensor_parallel_size=2), ("left", "right")))
        assert sorted(rank for each in made for rank in each["assigned_ranks"]) == [0, 1, 2, 3]
        assert set(threads.map(lambda each: pool.complete(each["api_url"]), made * 3)) == {alone}
    pool.delete("left")
    assert pool.complete(made[1]["api_url"]) == alone


def test_ranks_with_a_gap_between_them(pool: Controller) -> None:
    """Ranks 0 and 2 compute for one engine, around the neighbour of rank 1; then 0 and 3 for the next."""
    urls = {name: pool.create(name)["api_url"] for name in ("first", "middle", "last")}
    alone = pool.complete(urls["middle"])
    pool.delete("first")
    pool.delete("last")
    around = pool.create("around", tensor_parallel_size=2)
    assert around["assigned_ranks"] == [0, 2]
    assert pool.complete(around["api_url"]) == pool.complete(urls["middle"]) == alone
    rest = pool.create("rest")
    assert rest["assigned_ranks"] == [3]
    pool.delete("around")
    assert pool.complete(rest["api_url"]) == pool.complete(urls["middle"]) == alone


def test_three_ranks_beside_one(pool: Controller, tmp_path: Path) -> None:
    """Three of four ranks, not the first of them: a model with six heads says there what it says on one."""
    model = six_heads(tmp_path / "six-heads")
    asked = {"model": str(model), "served_model_name": "demo"}
    holder = pool.create("holder", **asked)
    alone = pool.complete(holder["api_url"])
    made = pool.create("three", tensor_parallel_size=3, **asked)
    assert (holder["assigned_ranks"], made["assigned_ranks"]) == ([0], [1, 2, 3])
    assert pool.complete(made["api_url"]) == pool.complete(holder["api_url"]) == alone
    assert len(pool.call("GET", "/engines/three/load_timings").json()["workers"]) == 3


@pytest.mark.parametrize(
    ("tensor", "pipeline", "ranks"), [(1, 2, [1, 2]), (1, 3, [1, 2, 3]), (2, 2, [0, 1, 2, 3])], ids=["2", "3", "2x2"]
)
def test_pipelines(pool: Controller, tensor: int, pipeline: int, ranks: list[int]) -> None:
    """Stages of one rank each, or of two: what comes out of the last is what one rank says, streams side by side too."""
    alone = pool.complete(pool.create("alone")["api_url"])
    if ranks[0] == 0:
        pool.delete("alone")
    made = pool.create("pipeline", tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    assert made["assigned_ranks"] == ranks
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: pool.complete(made["api_url"]), range(8))) == {alone}
    assert pool.complete(made["api_url"], prompt="word " * 200) != ""


def six_heads(folder: Path) -> Path:
    """Write a demo model whose heads, keys and inner layers can be shared among three ranks."""
    folder.mkdir()
    demo.write_demo_model(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "vocab_size": 960,
        "hidden_size": 384,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "intermediate_size": 768,
    }
    (folder / "config.json").write_text(json.dumps(config))
    demo._write_safetensors(folder / "model.safetensors", demo._weights(config))
    return folder
