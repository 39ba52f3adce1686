"""GPUs and cores for decode and prefill workers: who chooses first, what is shared, what is too little."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.graph.load import graph_from_raw
from components.graph.schema import SimEngine, VllmEngine
from components.launch.devices import EngineGroup, Machine, PlanError, assign, engine_groups

BIND = "VLLM_CPU_OMP_THREADS_BIND"


def group(component: str, replicas: int = 1, each: int = 1, gpus: tuple[str, ...] | None = None) -> EngineGroup:
    """Return some workers of `each` GPUs."""
    return EngineGroup(component, replicas, VllmEngine(args={"tensor_parallel_size": each}), gpus)


def gpus(count: int) -> Machine:
    """Return a machine with so many GPUs."""
    return Machine(gpus=tuple(map(str, range(count))))


def places(groups: list[EngineGroup], machine: Machine, *, reuse: bool = False) -> dict[str, tuple[str, ...]]:
    """Return each worker's GPUs."""
    return {f"{g.component}-{index}": place.gpus for g, index, place in assign(groups, machine, reuse=reuse)}


def cores(groups: list[EngineGroup], cpus: int) -> list[str | None]:
    """Return each worker's cores on a machine without GPUs."""
    machine = Machine(cpus=tuple(range(cpus)), vllm_on_cpu=True)
    return [place.environment.get(BIND) for _, _, place in assign(groups, machine, reuse=False)]


def test_decode_workers_choose_first() -> None:
    """Prefill workers get what is left, each worker its own."""
    placed = places([group("decode", 2), group("prefill", 1, each=2)], gpus(4))
    assert placed == {"decode-0": ("0",), "decode-1": ("1",), "prefill-0": ("2", "3")}


def test_each_worker_sees_its_own_gpus_only() -> None:
    """By the variable that CUDA goes by."""
    environments = [place.environment for _, _, place in assign([group("decode", 1, each=2)], gpus(2), reuse=False)]
    assert environments == [{"CUDA_VISIBLE_DEVICES": "0,1"}]


def test_what_decode_workers_leave_is_too_little() -> None:
    """The line says that others have the rest, and what to do."""
    with pytest.raises(PlanError) as caught:
        places([group("decode", 2), group("prefill", 2)], gpus(3))
    assert str(caught.value) == (
        "components.prefill.replicas: 2 x 1 GPUs = 2 needed, 1 usable beside the other workers; 1 replicas fit, or share "
        "GPUs with --set supervision.reuse_gpus=true"
    )


def test_one_gpu_for_both() -> None:
    """With reuse the prefill worker goes onto the decode worker's GPU; without, there is none left."""
    both = [group("decode"), group("prefill")]
    assert places(both, gpus(1), reuse=True) == {"decode-0": ("0",), "prefill-0": ("0",)}
    with pytest.raises(PlanError, match=r"components\.prefill\.replicas: 1 x 1 GPUs = 1 needed, 0 usable beside"):
        places(both, gpus(1))


def test_free_gpus_come_before_shared_ones() -> None:
    """Reuse is for want of free ones, and begins with those that are free."""
    assert places([group("decode"), group("prefill")], gpus(2), reuse=True) == {"decode-0": ("0",), "prefill-0": ("1",)}
    placed = places([group("decode"), group("prefill", 2)], gpus(2), reuse=True)
    assert placed == {"decode-0": ("0",), "prefill-0": ("1",), "prefill-1": ("0",)}


def test_chosen_gpus_of_each_kind() -> None:
    """`gpus` of either is kept to; one that the other kind has is not free."""
    placed = places([group("decode", gpus=("3",)), group("prefill", gpus=("1",))], gpus(4))
    assert placed == {"decode-0": ("3",), "prefill-0": ("1",)}
    with pytest.raises(PlanError, match=r"components\.prefill\.replicas: .* 0 usable"):
        places([group("decode", gpus=("1",)), group("prefill", gpus=("1",))], gpus(4))


@given(decode=st.integers(1, 4), prefill=st.integers(1, 4), each=st.integers(1, 2), spare=st.integers(0, 3))
def test_no_gpu_goes_to_two_workers(decode: int, prefill: int, each: int, spare: int) -> None:
    """Unless they may be reused."""
    machine = gpus((decode + prefill) * each + spare)
    taken = [
        gpu
        for one in places([group("decode", decode, each), group("prefill", prefill, each)], machine).values()
        for gpu in one
    ]
    assert len(taken) == len(set(taken)) == (decode + prefill) * each


def test_engines_on_a_cpu_share_out_the_cores() -> None:
    """All engines count, of either kind."""
    assert cores([group("decode", 2), group("prefill")], 6) == ["0,1", "2,3", "4,5"]
    assert cores([group("decode"), group("prefill")], 5) == ["0,1", "2,3"]


def test_more_engines_than_cores_take_turns() -> None:
    """One core each, round and round."""
    assert cores([group("decode", 2), group("prefill", 1)], 2) == ["0", "1", "0"]
    assert cores([group("decode", 3)], 1) == ["0", "0", "0"]


def test_the_ranks_of_an_engine_share_out_its_cores() -> None:
    """Although it is alone: vLLM by itself refuses more ranks than the machine has NUMA nodes."""
    assert cores([group("decode", each=2)], 4) == ["0,1|2,3"]
    assert cores([group("decode", each=2), group("prefill", each=2)], 2) == ["0|1", "0|1"]
    assert cores([group("decode", 2, each=2)], 8) == ["0,1|2,3", "4,5|6,7"]


def test_one_engine_has_the_cpu_to_itself() -> None:
    """And simulated ones do not count."""
    sim = EngineGroup("prefill", 3, SimEngine(), None)
    assert cores([group("decode"), sim], 4) == [None, None, None, None]


def test_prefill_workers_go_like_decode_workers_by_default() -> None:
    """Their engine is that of the decode workers, unless it has settings of its own; parts without replicas have none."""
    engine = {"kind": "vllm", "tensor_parallel_size": 2}
    raw = {"model": "demo", "lmcache": {}, "components": {"decode": {"engine": engine}, "prefill": {"gpus": [3]}}}
    decode, prefill = engine_groups(graph_from_raw(raw))
    assert (decode.engine, decode.gpus) == (prefill.engine, None)
    assert (prefill.component, prefill.gpus) == ("prefill", ("3",))
    raw = {"model": "demo", "lmcache": {}, "nats": "nats://h:1", "components": {"decode": {"replicas": 0}, "prefill": {}}}
    assert [each.component for each in engine_groups(graph_from_raw(raw))] == ["prefill"]
