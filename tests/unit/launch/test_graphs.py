"""The graphs that come along: each can be planned on the machine it is for."""

from pathlib import Path

import pytest

from components.graph.load import load_graph
from components.graph.schema import VllmEngine
from components.launch.devices import Machine, PlanError
from components.launch.plan import make_plan

GRAPHS = Path(__file__).parents[3] / "graphs"
CPU = Machine(cpus=(0, 1), vllm_on_cpu=True)
GPUS = {"gpu_8b": 2, "gpu_disagg_1": 1, "gpu_disagg_2": 2, "gpu_disagg_2p1d": 3, "gpu_disagg_1p2d": 3, "gpu_disagg_4": 4}


def machine(gpus: int) -> Machine:
    """Return a machine with so many GPUs."""
    return Machine(gpus=tuple(map(str, range(gpus))), cpus=(0, 1))


def test_every_gpu_graph_is_tested() -> None:
    """A new one must say how many GPUs it is for."""
    assert {file.stem for file in GRAPHS.glob("gpu_*.yaml")} == set(GPUS)


@pytest.mark.parametrize("file", sorted(GRAPHS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_graph_fits_its_machine(file: Path) -> None:
    """GPU graphs on as many GPUs as their first lines say, all others on a CPU too."""
    overrides = ["host=a"] if file.stem == "multi_host" else []
    graph = load_graph(file, overrides)
    plan = make_plan(graph, machine(GPUS[file.stem]) if file.stem in GPUS else CPU)
    assert plan.processes


@pytest.mark.parametrize(("name", "gpus"), GPUS.items())
def test_a_gpu_graph_needs_all_its_gpus(name: str, gpus: int) -> None:
    """Every GPU is used, and with one fewer there is a clear refusal."""
    graph = load_graph(GRAPHS / f"{name}.yaml")
    used = {gpu for spec in make_plan(graph, machine(gpus)).processes for gpu in spec.gpus}
    assert len(used) == gpus
    with pytest.raises(PlanError, match=r"components\.(decode|prefill)\.replicas: "):
        make_plan(graph, machine(gpus - 1))


@pytest.mark.parametrize("name", ["gpu_disagg_1", "disagg", "disagg_router"])
def test_engines_that_share_a_gpu_measure_no_free_memory(name: str) -> None:
    """Each is told how much KV it has, and wants no more at its start than the others leave; one starts after the other."""
    graph = load_graph(GRAPHS / f"{name}.yaml")
    engines = [spec for spec in make_plan(graph, machine(1)).processes if spec.gpus]
    assert {spec.component for spec in engines} == {"decode", "prefill"}
    assert all(spec.shared_gpus == ("0",) for spec in engines)
    assert graph.components.decode
    assert isinstance(graph.components.decode.engine, VllmEngine)
    args = graph.components.decode.engine.args
    assert args["kv_cache_memory_bytes"] >= 2**30
    assert args["gpu_memory_utilization"] * len(engines) < 0.9
