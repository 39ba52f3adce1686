"""Which processes a graph needs on this machine, with their GPUs and ports. Pure: settings and machine facts in, plan out.

Starts nothing and looks at nothing; `components.launch.machine` gathers the facts, `supervisor` carries the plan out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from components.graph.keys import ENVIRONMENT, is_loopback
from components.graph.schema import Graph, VllmEngine
from components.launch.devices import Machine, PlanError, assign, engine_groups


class ProcessSpec(msgspec.Struct, frozen=True):
    """One process to start.

    Attributes:
        name: unique in the graph, such as ``decode-0``.
        component: ``nats``, ``processor``, ``router``, ``lmcache``, ``coordinator``, ``decode``, ``prefill``, ``jobs``,
            ``job-worker``.
        module: run as ``python -m <module> --graph FILE --name <name>``; empty for nats-server.
        environment: variables for this process alone.
        warm: forked from a process that has vLLM imported already.
        ports: TCP ports it listens on; not counted are those it chooses itself.
        host: the address they are bound on.
        gpus: GPUs it uses.
        shared_gpus: those of them that others use too; of these processes one starts at a time, as an engine that measures
            the free memory must not meet another that is taking it.
        late: the graph is ready without it; it is started when all others are.
    """

    name: str
    component: str
    module: str
    environment: Mapping[str, str] = {}
    warm: bool = False
    ports: tuple[int, ...] = ()
    host: str = ""
    gpus: tuple[str, ...] = ()
    shared_gpus: tuple[str, ...] = ()
    late: bool = False


class Listener(msgspec.Struct, frozen=True):
    """Where a process listens.

    Attributes:
        host: address.
        setting: path of the port's setting, such as ``http.port``.
    """

    host: str
    setting: str


class Plan(msgspec.Struct, frozen=True):
    """A graph and the processes it needs, in the order they are listed to people; NATS first."""

    graph: Graph
    processes: tuple[ProcessSpec, ...]


NATS = ProcessSpec(name="nats", component="nats", module="")


def make_plan(graph: Graph, machine: Machine) -> Plan:
    """Return the processes `graph` needs on `machine`.

    Raises:
        PlanError: a port is taken or open to strangers, there are too few GPUs, or a setting is not for this machine.
    """
    _check_ports(graph, machine)
    _check_hosts(graph, machine)
    _check_kv_and_keys(graph, machine)
    processes = [NATS] if graph.nats == "embedded" else []
    processes += [*_processors(graph), *(spec for spec in _routers(graph) if spec.module)]
    processes += [*_lmcache(graph), *_coordinator(graph)]
    processes += [*_workers(graph, machine), *_jobs(graph)]
    return Plan(graph, tuple(processes))


def wanted_ports(graph: Graph) -> dict[int, Listener]:
    """Return the TCP ports the processes of `graph` listen on.

    Raises:
        PlanError: two of them want the same.
    """
    ports = {port: Listener(spec.host, "http.port") for spec in _processors(graph) for port in spec.ports}
    wanted = [(spec, port, "router.http_port") for spec in _routers(graph) for port in spec.ports]
    for spec in _lmcache(graph):
        wanted += [(spec, port, f"lmcache.{name}") for port, name in zip(spec.ports, ("port", "http_port"), strict=False)]
    wanted += [(spec, port, "jobs.http_port") for spec in _jobs(graph) for port in spec.ports]
    wanted += [(spec, port, "lmcache.coordinator_port") for spec in _coordinator(graph) for port in spec.ports]
    for spec, port, setting in wanted:
        if port in ports:
            raise PlanError(f"{setting}: {port} is wanted twice, by {spec.name} and as {ports[port].setting}")
        ports[port] = Listener(spec.host, setting)
    return ports


def _check_ports(graph: Graph, machine: Machine) -> None:
    for port, listener in wanted_ports(graph).items():
        if holder := machine.port_holders.get(port):
            setting = listener.setting
            raise PlanError(f"{setting}: {port} is taken by {holder}; choose another with --set {setting}=PORT")


def _check_hosts(graph: Graph, machine: Machine) -> None:
    """Refuse to show what a router or a queue knows, and to let it be changed, to everybody who can reach this machine."""
    router, jobs = graph.components.router, graph.components.jobs
    hosts = {
        "router": router.http_host if router and graph.routers else None,
        "jobs": jobs.http_host if jobs and jobs.replicas else None,
    }
    for component, host in hosts.items():
        if host is not None and not machine.api_keys and not is_loopback(host):
            raise PlanError(
                f"components.{component}.http_host: {host} is open to other machines, and {ENVIRONMENT} is not set; "
                "set it, or keep to 127.0.0.1"
            )


def _check_kv_and_keys(graph: Graph, machine: Machine) -> None:
    """Refuse what engines on this machine cannot have, and a wall between API keys where there are none."""
    vllm = any(isinstance(group.engine, VllmEngine) for group in engine_groups(graph))
    if vllm and machine.vllm_on_cpu and graph.kv.block_size % 32:
        raise PlanError(f"kv.block_size: vLLM on CPU takes multiples of 32, not {graph.kv.block_size}")
    processor = graph.components.processor
    if graph.http.isolate_api_keys and processor and processor.replicas and not machine.api_keys:
        raise PlanError(f"http.isolate_api_keys: needs API keys, and {ENVIRONMENT} is not set")


def _processors(graph: Graph) -> Iterator[ProcessSpec]:
    settings, router = graph.components.processor, graph.components.router
    module = "components.launch.routing_processor" if router and router.embedded else "components.processor"
    for index in range(settings.replicas if settings else 0):
        name = graph.process_name("processor", index)
        yield ProcessSpec(name, "processor", module, ports=(graph.http.port,), host=graph.http.host)


def _routers(graph: Graph) -> Iterator[ProcessSpec]:
    """Yield the routers; those inside processors have no module, only ports."""
    settings = graph.components.router
    if settings is None:
        return
    module = "" if settings.embedded else "components.router"
    for index in range(graph.routers):
        ports = (settings.http_port + index,)
        name = graph.process_name("router", index)
        yield ProcessSpec(name, "router", module, ports=ports, host=settings.http_host)


def _jobs(graph: Graph) -> Iterator[ProcessSpec]:
    settings = graph.components.jobs
    if settings is None:
        return
    for index in range(settings.replicas):
        name = graph.process_name("jobs", index)
        yield ProcessSpec(name, "jobs", "components.jobs", ports=(settings.http_port,), host=settings.http_host)
    for index in range(settings.workers):
        yield ProcessSpec(graph.process_name("job-worker", index), "job-worker", "components.jobs.graph_worker")


def _lmcache(graph: Graph) -> Iterator[ProcessSpec]:
    settings = graph.lmcache
    groups = engine_groups(graph)
    if settings is None or not groups:
        return
    real = any(isinstance(group.engine, VllmEngine) for group in groups)
    yield ProcessSpec(
        graph.process_name("lmcache", 0),
        "lmcache",
        "components.lmcache",
        warm=real and graph.supervision.warm_start,
        ports=(settings.port, settings.http_port) if real else (),
        host=settings.host,
    )


def has_coordinator(graph: Graph) -> bool:
    """Whether this part of the graph runs LMCache's coordinator: where there is a real server for it to know."""
    return bool(graph.lmcache and graph.lmcache.coordinator) and any(spec.ports for spec in _lmcache(graph))


def _coordinator(graph: Graph) -> Iterator[ProcessSpec]:
    """Yield LMCache's coordinator. No request needs it."""
    settings, servers = graph.lmcache, list(_lmcache(graph))
    if settings is None or not has_coordinator(graph):
        return
    yield ProcessSpec(
        graph.process_name("coordinator", 0),
        "coordinator",
        "components.lmcache.coordinator",
        warm=servers[0].warm,
        ports=(settings.coordinator_port,) if settings.coordinator_port else (),
        host=settings.host,
        late=True,
    )


def _workers(graph: Graph, machine: Machine) -> Iterator[ProcessSpec]:
    places = list(assign(engine_groups(graph), machine, reuse=graph.supervision.reuse_gpus))
    users = Counter(gpu for _, _, place in places for gpu in place.gpus)
    for group, index, place in places:
        yield ProcessSpec(
            graph.process_name(group.component, index),
            group.component,
            f"components.{group.component}",
            environment=place.environment,
            warm=isinstance(group.engine, VllmEngine) and graph.supervision.warm_start,
            gpus=place.gpus,
            shared_gpus=tuple(gpu for gpu in place.gpus if users[gpu] > 1),
        )
