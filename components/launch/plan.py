"""Which processes a graph needs on this machine, with their GPUs and ports. Pure: settings and machine facts in, plan out.

Starts nothing and looks at nothing; `components.launch.machine` gathers the facts, `supervisor` carries the plan out.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from components.graph.keys import ENVIRONMENT
from components.graph.schema import DecodeSettings, Graph, VllmEngine


class PlanError(Exception):
    """This machine cannot run this graph; the text is one line with the path of the setting at fault."""


class Machine(msgspec.Struct, frozen=True):
    """What a plan needs to know about this machine.

    Attributes:
        gpus: visible GPUs, as CUDA_VISIBLE_DEVICES names them.
        cpus: CPU cores this process may use.
        vllm_on_cpu: the installed vLLM computes on the CPU, whatever GPUs there are.
        port_holders: taken ports → who holds them, for a person.
        variables: names of the environment variables that are set; a plan overrules none of them.
        api_keys: whether clients will need an API key.
    """

    gpus: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()
    vllm_on_cpu: bool = False
    port_holders: Mapping[int, str] = {}
    variables: frozenset[str] = frozenset()
    api_keys: bool = False


class ProcessSpec(msgspec.Struct, frozen=True):
    """One process to start.

    Attributes:
        name: unique in the graph, such as ``decode-0``.
        component: ``nats``, ``processor``, ``router``, ``decode``.
        module: run as ``python -m <module> --graph FILE --name <name>``; empty for nats-server.
        environment: variables for this process alone.
        warm: forked from a process that has vLLM imported already.
        ports: TCP ports it listens on; not counted are those it chooses itself.
        host: the address they are bound on.
        gpus: GPUs it uses.
        shared_gpus: those of them that others use too; of these processes one starts at a time, as an engine that measures
            the free memory must not meet another that is taking it.
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
    _check_router_host(graph, machine)
    _check_kv_and_keys(graph, machine)
    processes = [NATS] if graph.nats == "embedded" else []
    processes += [*_processors(graph), *_routers(graph), *_decode_workers(graph, machine)]
    return Plan(graph, tuple(processes))


def wanted_ports(graph: Graph) -> dict[int, Listener]:
    """Return the TCP ports the processes of `graph` listen on.

    Raises:
        PlanError: two of them want the same.
    """
    ports = {port: Listener(spec.host, "http.port") for spec in _processors(graph) for port in spec.ports}
    for spec in _routers(graph):
        (port,) = spec.ports
        if port in ports:
            raise PlanError(f"router.http_port: {spec.name} and the processors both want {port}")
        ports[port] = Listener(spec.host, "router.http_port")
    return ports


def _check_ports(graph: Graph, machine: Machine) -> None:
    for port, listener in wanted_ports(graph).items():
        if holder := machine.port_holders.get(port):
            setting = listener.setting
            raise PlanError(f"{setting}: {port} is taken by {holder}; choose another with --set {setting}=PORT")


def _check_router_host(graph: Graph, machine: Machine) -> None:
    """Refuse to show what the router knows, and to let it be reset, to everybody who can reach this machine."""
    router = graph.components.router
    if router is not None and router.replicas and not machine.api_keys and not _is_loopback(router.http_host):
        raise PlanError(
            f"components.router.http_host: {router.http_host} is open to other machines, and {ENVIRONMENT} is not set; "
            "set it, or keep to 127.0.0.1"
        )


def _check_kv_and_keys(graph: Graph, machine: Machine) -> None:
    """Refuse what engines on this machine cannot have, and a wall between API keys where there are none."""
    decode = graph.components.decode
    vllm = decode is not None and decode.replicas > 0 and isinstance(decode.engine, VllmEngine)
    if vllm and machine.vllm_on_cpu and graph.kv.block_size % 32:
        raise PlanError(f"kv.block_size: vLLM on CPU takes multiples of 32, not {graph.kv.block_size}")
    processor = graph.components.processor
    if graph.http.isolate_api_keys and processor and processor.replicas and not machine.api_keys:
        raise PlanError(f"http.isolate_api_keys: needs API keys, and {ENVIRONMENT} is not set")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _processors(graph: Graph) -> Iterator[ProcessSpec]:
    settings = graph.components.processor
    for index in range(settings.replicas if settings else 0):
        name = graph.process_name("processor", index)
        yield ProcessSpec(name, "processor", "components.processor", ports=(graph.http.port,), host=graph.http.host)


def _routers(graph: Graph) -> Iterator[ProcessSpec]:
    settings = graph.components.router
    if settings is None:
        return
    for index in range(settings.replicas):
        ports = (settings.http_port + index,)
        name = graph.process_name("router", index)
        yield ProcessSpec(name, "router", "components.router", ports=ports, host=settings.http_host)


def _decode_workers(graph: Graph, machine: Machine) -> Iterator[ProcessSpec]:
    decode = graph.components.decode
    if decode is None or decode.replicas == 0:
        return
    gpus = _assign_gpus(decode, machine, reuse=graph.supervision.reuse_gpus)
    users = Counter(gpu for each in gpus for gpu in each)
    for index in range(decode.replicas):
        yield ProcessSpec(
            graph.process_name("decode", index),
            "decode",
            "components.decode",
            environment=_device_environment(decode, index, gpus[index], machine),
            warm=isinstance(decode.engine, VllmEngine) and graph.supervision.warm_start,
            gpus=gpus[index],
            shared_gpus=tuple(gpu for gpu in gpus[index] if users[gpu] > 1),
        )


def _assign_gpus(decode: DecodeSettings, machine: Machine, *, reuse: bool) -> list[tuple[str, ...]]:
    """Return each worker's GPUs: consecutive ones, and round again when they may be reused."""
    if not isinstance(decode.engine, VllmEngine) or machine.vllm_on_cpu:
        return [()] * decode.replicas
    each = gpus_per_engine(decode.engine)
    usable = _usable_gpus(decode, machine)
    needed = decode.replicas * each
    enough = len(usable) >= (each if reuse else needed)
    if not enough:
        raise PlanError(
            f"components.decode.replicas: {decode.replicas} x {each} GPUs = {needed} needed, {len(usable)} usable"
            f"{_hint(each, len(usable))}"
        )
    return [tuple(usable[(index * each + n) % len(usable)] for n in range(each)) for index in range(decode.replicas)]


def gpus_per_engine(engine: VllmEngine) -> int:
    """Return how many GPUs one engine takes: tensor times pipeline parallelism.

    Raises:
        PlanError: one of them is no positive whole number.
    """
    product = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = engine.args.get(name, 1)
        if not isinstance(size, int) or size < 1:
            raise PlanError(f"components.decode.engine.{name}: must be a whole number of at least 1, not {size!r}")
        product *= size
    return product


def _usable_gpus(decode: DecodeSettings, machine: Machine) -> tuple[str, ...]:
    if decode.gpus is None:
        return machine.gpus
    wanted = tuple(str(gpu) for gpu in decode.gpus)
    for gpu in wanted:
        if gpu not in machine.gpus:
            visible = ", ".join(machine.gpus) or "none"
            raise PlanError(f"components.decode.gpus: GPU {gpu} is not visible; visible: {visible}")
    return wanted


def _hint(each: int, usable: int) -> str:
    if usable >= each:
        return f"; {usable // each} replicas fit, or share GPUs with --set supervision.reuse_gpus=true"
    return "" if usable else " (does `nvidia-smi` list them?)"


def _device_environment(decode: DecodeSettings, index: int, gpus: tuple[str, ...], machine: Machine) -> dict[str, str]:
    """Return the variables that keep worker `index` to its GPUs, or several CPU workers off each other's cores."""
    if gpus:
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    engine = decode.engine
    cores_each = len(machine.cpus) // decode.replicas
    alone = decode.replicas == 1 or cores_each == 0
    chosen_by_user = "VLLM_CPU_OMP_THREADS_BIND" in machine.variables
    if not isinstance(engine, VllmEngine) or alone or chosen_by_user or gpus_per_engine(engine) > 1:
        return {}
    # Left to itself, every vLLM on a machine binds its threads to the same cores.
    cores = machine.cpus[index * cores_each : (index + 1) * cores_each]
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
