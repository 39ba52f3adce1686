"""Plans: which processes, which GPUs, which cores; and what a machine cannot run."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from components.graph.check import MAX_REPLICAS
from components.graph.load import graph_from_raw
from components.graph.schema import Graph
from components.launch.devices import Machine, PlanError
from components.launch.plan import NATS, make_plan, wanted_ports

CPU = Machine(cpus=(0, 1, 2, 3), vllm_on_cpu=True)


def graph(engine: dict[str, Any] | None = None, decode: dict[str, Any] | None = None, **settings: Any) -> Graph:
    """Return a graph of one processor and some decode workers."""
    components = {"processor": {}, "decode": {"engine": engine or {}, **(decode or {})}}
    return graph_from_raw({"model": "demo", "components": components, **settings})


def gpus(*names: str) -> Machine:
    """Return a machine with these GPUs."""
    return Machine(gpus=names, cpus=(0, 1, 2, 3))


def test_names_and_order() -> None:
    """NATS first, then processors, then workers, each with its number."""
    plan = make_plan(graph(decode={"replicas": 2}), CPU)
    assert [spec.name for spec in plan.processes] == ["nats", "processor-0", "decode-0", "decode-1"]
    assert plan.processes[1].ports == (8181,)
    assert plan.processes[2].module == "components.decode"


def test_routers_have_a_port_each() -> None:
    """Replica i listens on port + i; a taken one is refused by the name of its setting and holder."""
    components = {"processor": {}, "router": {"replicas": 2, "http_port": 9000}, "decode": {"engine": {"kind": "sim"}}}
    routed = graph_from_raw({"model": "demo", "components": components})
    specs = [spec for spec in make_plan(routed, CPU).processes if spec.component == "router"]
    assert [(spec.name, spec.ports) for spec in specs] == [("router-0", (9000,)), ("router-1", (9001,))]
    with pytest.raises(PlanError, match=r"router\.http_port: 9001 is taken by pid 7"):
        make_plan(routed, Machine(port_holders={9001: "pid 7 (x)"}))
    clash = graph_from_raw({"model": "demo", "components": components, "http": {"port": 9001}})
    with pytest.raises(PlanError, match=r"router\.http_port: 9001 is wanted twice, by router-1 and as http\.port"):
        make_plan(clash, CPU)


def disaggregated(**lmcache: Any) -> Graph:
    """Return a graph of one decode worker, one prefill worker and an LMCache server."""
    components = {"processor": {}, "router": {}, "decode": {}, "prefill": {}}
    return graph_from_raw({"model": "demo", "components": components, "lmcache": lmcache})


def test_prefill_workers_and_lmcache() -> None:
    """The server that carries KV comes before the engines, with its two ports and vLLM already imported."""
    plan = make_plan(disaggregated(), CPU)
    names = ["nats", "processor-0", "router-0", "lmcache-0", "coordinator-0", "decode-0", "prefill-0"]
    assert [spec.name for spec in plan.processes] == names
    server, prefill = plan.processes[3], plan.processes[-1]
    assert (server.module, server.ports, server.host) == ("components.lmcache", (5555, 5556), "127.0.0.1")
    assert (prefill.module, prefill.ports) == ("components.prefill", ())
    assert server.warm
    assert prefill.warm


def test_lmcache_ports_are_checked_like_the_others() -> None:
    """A taken one, and one that another process of the graph wants, is refused with its setting."""
    with pytest.raises(PlanError, match=r"lmcache\.http_port: 5556 is taken by pid 7 .*--set lmcache\.http_port=PORT"):
        make_plan(disaggregated(), replace(CPU, port_holders={5556: "pid 7 (x)"}))
    with pytest.raises(PlanError, match=r"lmcache\.port: 8182 is wanted twice, by lmcache-0 and as router\.http_port"):
        make_plan(disaggregated(port=8182), CPU)


def test_a_coordinator_stands_beside_a_real_lmcache_server() -> None:
    """Unless it is turned off; nobody waits for it. A port that is chosen is refused like the others when it is taken."""
    coordinator = make_plan(disaggregated(coordinator_port=9300), CPU).processes[4]
    assert (coordinator.name, coordinator.module, coordinator.ports) == (
        "coordinator-0",
        "components.lmcache.coordinator",
        (9300,),
    )
    assert [spec.name for spec in make_plan(disaggregated(), CPU).processes if spec.late] == ["coordinator-0"]
    alone = make_plan(disaggregated(coordinator=False), CPU).processes
    assert "coordinator-0" not in [spec.name for spec in alone]
    with pytest.raises(PlanError, match=r"lmcache\.coordinator_port: 8182 is wanted twice"):
        make_plan(disaggregated(coordinator_port=8182), CPU)


def test_simulated_engines_need_no_lmcache_ports() -> None:
    """Their KV goes nowhere, so nobody listens."""
    components = {"processor": {}, "decode": {"engine": {"kind": "sim"}}, "prefill": {}}
    simulated = graph_from_raw({"model": "demo", "components": components, "lmcache": {}})
    assert set(wanted_ports(simulated)) == {8181}


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "10.0.0.7", "gpu1.example"])
def test_a_router_open_to_strangers_needs_keys(host: str) -> None:
    """Its queries tell who holds what and reset workers: other addresses than loopback are refused without API keys."""
    components = {"processor": {}, "router": {"http_host": host}, "decode": {"engine": {"kind": "sim"}}}
    routed = graph_from_raw({"model": "demo", "components": components})
    with pytest.raises(PlanError, match=r"components\.router\.http_host: .* PENSTOCK_API_KEY is not set"):
        make_plan(routed, CPU)
    assert make_plan(routed, replace(CPU, api_keys=True)).processes


def test_embedded_routers_are_no_processes_but_listen() -> None:
    """Each processor has one, with a port of its own; a taken port is refused, and so is one that strangers reach."""
    components = {
        "processor": {"replicas": 2},
        "router": {"embedded": True, "replicas": 7},
        "decode": {"engine": {"kind": "sim"}},
    }
    embedded = graph_from_raw({"model": "demo", "components": components})
    processors = [spec for spec in make_plan(embedded, CPU).processes if spec.name.startswith(("processor", "router"))]
    assert [spec.name for spec in processors] == ["processor-0", "processor-1"]
    assert {spec.module for spec in processors} == {"components.launch.routing_processor"}
    assert set(wanted_ports(embedded)) == {8181, 8182, 8183}
    with pytest.raises(PlanError, match=r"router\.http_port: 8183 is taken by pid 7"):
        make_plan(embedded, replace(CPU, port_holders={8183: "pid 7 (x)"}))
    components["router"]["http_host"] = "0.0.0.0"
    with pytest.raises(PlanError, match=r"components\.router\.http_host"):
        make_plan(graph_from_raw({"model": "demo", "components": components}), CPU)
    without = graph_from_raw({"model": "demo", "nats": "nats://x:1", "components": components}, ["processor.replicas=0"])
    assert (without.routers, wanted_ports(without)) == (0, {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "::1", "localhost"])
def test_a_router_on_loopback_needs_none(host: str) -> None:
    """Only this machine reaches it."""
    components = {"processor": {}, "router": {"http_host": host}, "decode": {"engine": {"kind": "sim"}}}
    assert make_plan(graph_from_raw({"model": "demo", "components": components}), CPU).processes


def test_a_nats_server_of_the_users_is_not_started() -> None:
    """With a URL there is no NATS process."""
    assert NATS not in make_plan(graph(nats="nats://somewhere:4222"), CPU).processes


def test_parts_of_a_graph_have_names_of_their_own() -> None:
    """Each machine's label stands in its names; what other machines run is neither started nor given ports and GPUs."""

    def part(host: str, *overrides: str) -> Graph:
        components = {"processor": {}, "router": {"http_host": "0.0.0.0"}, "decode": {"replicas": 2}}
        raw = {"model": "demo", "host": host, "nats": "nats://somewhere:4222", "components": components}
        return graph_from_raw(raw, overrides)

    workers = part("b", "processor.replicas=0", "router.replicas=0")
    assert [spec.name for spec in make_plan(workers, CPU).processes] == ["decode-b-0", "decode-b-1"]
    assert wanted_ports(workers) == {}
    edge = part("a", "decode.replicas=0", "router.http_host=127.0.0.1")
    assert [spec.name for spec in make_plan(edge, gpus()).processes] == ["processor-a-0", "router-a-0"]


def test_only_vllm_workers_start_warm() -> None:
    """Simulated workers import no vLLM, and warm start can be turned off."""
    assert make_plan(graph(), CPU).processes[-1].warm
    assert not make_plan(graph(engine={"kind": "sim"}), CPU).processes[-1].warm
    assert not make_plan(graph(supervision={"warm_start": False}), CPU).processes[-1].warm


@given(replicas=st.integers(1, 6), tensor=st.integers(1, 4), pipeline=st.integers(1, 2))
def test_gpus_are_shared_out_whole(replicas: int, tensor: int, pipeline: int) -> None:
    """Each worker gets tensor x pipeline GPUs, no GPU goes to two workers, and its process sees no others."""
    machine = gpus(*map(str, range(48)))
    engine = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    workers = make_plan(graph(engine, {"replicas": replicas}), machine).processes[2:]
    taken = [gpu for spec in workers for gpu in spec.gpus]
    assert len(taken) == len(set(taken)) == replicas * tensor * pipeline
    assert all(spec.environment == {"CUDA_VISIBLE_DEVICES": ",".join(spec.gpus)} for spec in workers)


def test_too_few_gpus() -> None:
    """The line names the setting, the need, what there is, and a way out."""
    with pytest.raises(PlanError) as caught:
        make_plan(graph({"tensor_parallel_size": 2}, {"replicas": 3}), gpus("0", "1", "2", "3"))
    assert str(caught.value) == (
        "components.decode.replicas: 3 x 2 GPUs = 6 needed, 4 usable; 2 replicas fit, or share GPUs with "
        "--set supervision.reuse_gpus=true"
    )


def test_no_gpu_at_all() -> None:
    """A CUDA build of vLLM on a machine without GPUs is told so."""
    with pytest.raises(PlanError, match="1 needed, 0 usable"):
        make_plan(graph(), gpus())


def test_gpus_may_be_reused() -> None:
    """With reuse_gpus the workers go round the GPUs."""
    plan = make_plan(graph(decode={"replicas": 3}, supervision={"reuse_gpus": True}), gpus("0", "1"))
    assert [spec.gpus for spec in plan.processes[2:]] == [("0",), ("1",), ("0",)]
    assert [spec.shared_gpus for spec in plan.processes[2:]] == [("0",), (), ("0",)]
    alone = make_plan(graph(decode={"replicas": 2}, supervision={"reuse_gpus": True}), gpus("0", "1"))
    assert not any(spec.shared_gpus for spec in alone.processes)


def test_chosen_gpus() -> None:
    """`gpus` picks and orders; one that is not visible is refused."""
    plan = make_plan(graph(decode={"replicas": 2, "gpus": [3, 1]}), gpus("0", "1", "2", "3"))
    assert [spec.gpus for spec in plan.processes[2:]] == [("3",), ("1",)]
    with pytest.raises(PlanError, match=r"components\.decode\.gpus: GPU 7 is not visible; visible: 0, 1"):
        make_plan(graph(decode={"gpus": [7]}), gpus("0", "1"))


def test_workers_on_one_cpu_keep_off_each_others_cores() -> None:
    """Several CPU engines get disjoint cores, or take turns; one alone, a user's own choice, and simulated ones go free."""
    variable = "VLLM_CPU_OMP_THREADS_BIND"
    pair = make_plan(graph(decode={"replicas": 2}), CPU).processes[2:]
    assert [spec.environment[variable] for spec in pair] == ["0,1", "2,3"]
    assert variable not in make_plan(graph(), CPU).processes[-1].environment
    chosen = Machine(cpus=(0, 1), vllm_on_cpu=True, variables=frozenset({variable}))
    assert variable not in make_plan(graph(decode={"replicas": 2}), chosen).processes[-1].environment
    crowd = make_plan(graph(decode={"replicas": 5}), CPU).processes[2:]
    assert [spec.environment[variable] for spec in crowd] == ["0", "1", "2", "3", "0"]
    simulated = make_plan(graph({"kind": "sim"}, {"replicas": 2}), CPU).processes[2:]
    assert all(variable not in spec.environment for spec in simulated)


def test_a_taken_port_names_its_holder() -> None:
    """The holder is in the line."""
    with pytest.raises(PlanError, match=r"http\.port: 8181 is taken by pid 7 \(nginx\)"):
        make_plan(graph(), Machine(vllm_on_cpu=True, port_holders={8181: "pid 7 (nginx)"}))


def test_a_parallel_size_must_be_a_number() -> None:
    """What is no positive whole number is refused with its path."""
    with pytest.raises(PlanError, match=r"components\.decode\.engine\.tensor_parallel_size: must be a whole number"):
        make_plan(graph({"tensor_parallel_size": "two"}), gpus("0"))


def test_vllm_on_cpu_takes_blocks_of_32() -> None:
    """Other block sizes are for GPUs, where vLLM knows, and for the simulated engine."""
    odd = {"kv": {"block_size": 48}}
    with pytest.raises(PlanError, match=r"kv\.block_size: vLLM on CPU takes multiples of 32, not 48"):
        make_plan(graph(**odd), CPU)
    assert make_plan(graph({"kind": "sim"}, **odd), CPU).graph.kv.block_size == 48
    assert make_plan(graph(**odd), gpus("0")).graph.kv.block_size == 48


def test_isolated_keys_need_keys() -> None:
    """Without PENSTOCK_API_KEY nobody is told apart, and the setting would be a lie."""
    apart = graph(http={"isolate_api_keys": True})
    with pytest.raises(PlanError, match=r"http\.isolate_api_keys: needs API keys, and PENSTOCK_API_KEY is not set"):
        make_plan(apart, CPU)
    assert make_plan(apart, replace(CPU, api_keys=True)).graph.http.isolate_api_keys


def test_the_largest_plan() -> None:
    """Every process has its own name."""
    plan = make_plan(graph({"kind": "sim"}, {"replicas": MAX_REPLICAS}), CPU)
    assert len({spec.name for spec in plan.processes}) == MAX_REPLICAS + 2


def test_jobs_are_a_queue_and_its_workers() -> None:
    """The queue at its port; other machines' parts run workers only; a port that is wanted twice is refused."""
    components: dict[str, Any] = {"processor": {}, "decode": {"engine": {"kind": "sim"}}, "jobs": {"workers": 2}}
    plan = make_plan(graph_from_raw({"model": "demo", "components": components}), CPU)
    assert [(spec.name, spec.module, spec.ports) for spec in plan.processes[-3:]] == [
        ("jobs-0", "components.jobs", (8788,)),
        ("job-worker-0", "components.jobs.graph_worker", ()),
        ("job-worker-1", "components.jobs.graph_worker", ()),
    ]
    with pytest.raises(PlanError, match=r"jobs\.http_port: 8788 is taken by pid 7"):
        make_plan(plan.graph, replace(CPU, port_holders={8788: "pid 7 (x)"}))
    clash = graph_from_raw({"model": "demo", "components": components, "http": {"port": 8788}})
    with pytest.raises(PlanError, match=r"jobs\.http_port: 8788 is wanted twice"):
        make_plan(clash, CPU)
    open_to_all = graph_from_raw({"model": "demo", "components": {**components, "jobs": {"http_host": "0.0.0.0"}}})
    with pytest.raises(PlanError, match=r"components\.jobs\.http_host: .* PENSTOCK_API_KEY is not set"):
        make_plan(open_to_all, CPU)
    alone = graph_from_raw({"model": "none", "components": {"jobs": {"workers": 0}}})
    assert [spec.name for spec in make_plan(alone, CPU).processes] == ["nats", "jobs-0"]
