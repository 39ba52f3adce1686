"""What a machine has, and which GPUs, or without them which CPU cores, each engine of a graph gets. Pure."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from components.graph.schema import Graph, SimEngine, VllmEngine


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


class EngineGroup(msgspec.Struct, frozen=True):
    """Workers of one kind.

    Attributes:
        component: ``decode`` or ``prefill``.
        replicas: how many; at least 1.
        engine: of each.
        gpus: devices they may use; None: all visible ones that others leave.
    """

    component: str
    replicas: int
    engine: VllmEngine | SimEngine
    gpus: tuple[str, ...] | None

    @property
    def path(self) -> str:
        """Where its settings stand."""
        return f"components.{self.component}"


class Place(msgspec.Struct, frozen=True):
    """Where one engine runs.

    Attributes:
        gpus: its devices.
        environment: variables that keep it there.
    """

    gpus: tuple[str, ...] = ()
    environment: dict[str, str] = {}


def engine_groups(graph: Graph) -> list[EngineGroup]:
    """Return the workers with engines that this part of `graph` runs; prefill workers go like decode workers by default."""
    decode, prefill = graph.components.decode, graph.components.prefill
    groups = []
    if decode is not None and decode.replicas:
        groups.append(EngineGroup("decode", decode.replicas, decode.engine, _names(decode.gpus)))
    if prefill is not None and prefill.replicas:
        engine = prefill.engine or (decode.engine if decode is not None else VllmEngine())
        groups.append(EngineGroup("prefill", prefill.replicas, engine, _names(prefill.gpus)))
    return groups


def assign(groups: Sequence[EngineGroup], machine: Machine, *, reuse: bool) -> Iterator[tuple[EngineGroup, int, Place]]:
    """Yield each worker as its group, its number there, and its place.

    Args:
        groups: in the order in which they choose.
        machine: what there is.
        reuse: whether workers may share GPUs when there are too few.

    Raises:
        PlanError: there are too few, or a wrong one is named.
    """
    on_cpu = [
        (group, index)
        for group in groups
        for index in range(group.replicas)
        if isinstance(group.engine, VllmEngine) and machine.vllm_on_cpu
    ]
    taken: list[str] = []
    for group in groups:
        gpus = _assign_gpus(group, machine, taken, reuse=reuse)
        taken += [gpu for each in gpus for gpu in each]
        for index in range(group.replicas):
            if gpus[index]:
                yield group, index, Place(gpus[index], {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index])})
            elif (group, index) in on_cpu:
                yield (
                    group,
                    index,
                    Place(environment=_cores(group.engine, on_cpu.index((group, index)), len(on_cpu), machine)),
                )
            else:
                yield group, index, Place()


def _assign_gpus(group: EngineGroup, machine: Machine, taken: Sequence[str], *, reuse: bool) -> list[tuple[str, ...]]:
    """Return each worker's GPUs: consecutive free ones, and round again when they may be reused."""
    if not isinstance(group.engine, VllmEngine) or machine.vllm_on_cpu:
        return [()] * group.replicas
    each = gpus_per_engine(group.engine, f"{group.path}.engine")
    usable = _usable(group, machine)
    free = [gpu for gpu in usable if gpu not in taken]
    needed = group.replicas * each
    if len(free) < needed and reuse:
        free += [gpu for gpu in usable if gpu in taken]
    if len(free) < (each if reuse else needed):
        beside = " beside the other workers" if taken else ""
        raise PlanError(
            f"{group.path}.replicas: {group.replicas} x {each} GPUs = {needed} needed, {len(free)} usable{beside}"
            f"{_hint(each, len(free))}"
        )
    return [tuple(free[(index * each + n) % len(free)] for n in range(each)) for index in range(group.replicas)]


def gpus_per_engine(engine: VllmEngine, path: str) -> int:
    """Return how many GPUs one engine takes: tensor times pipeline parallelism.

    Raises:
        PlanError: one of them is no positive whole number.
    """
    product = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = engine.args.get(name, 1)
        if not isinstance(size, int) or size < 1:
            raise PlanError(f"{path}.{name}: must be a whole number of at least 1, not {size!r}")
        product *= size
    return product


def _usable(group: EngineGroup, machine: Machine) -> tuple[str, ...]:
    if group.gpus is None:
        return machine.gpus
    for gpu in group.gpus:
        if gpu not in machine.gpus:
            visible = ", ".join(machine.gpus) or "none"
            raise PlanError(f"{group.path}.gpus: GPU {gpu} is not visible; visible: {visible}")
    return group.gpus


def _hint(each: int, usable: int) -> str:
    if usable >= each:
        return f"; {usable // each} replicas fit, or share GPUs with --set supervision.reuse_gpus=true"
    return "" if usable else " (does `nvidia-smi` list them?)"


def _cores(engine: VllmEngine | SimEngine, index: int, engines: int, machine: Machine) -> dict[str, str]:
    """Return the variables that keep several CPU engines, and an engine's ranks, off each other's cores."""
    chosen_by_user = "VLLM_CPU_OMP_THREADS_BIND" in machine.variables
    ranks = gpus_per_engine(engine, "engine") if isinstance(engine, VllmEngine) else 1
    if (engines == 1 and ranks == 1) or not machine.cpus or chosen_by_user:
        return {}
    # Left to itself, every vLLM on a machine binds its threads to the same cores, and wants a NUMA node for each rank.
    each = max(len(machine.cpus) // (engines * ranks), 1)
    first = index * ranks * each
    cores = [machine.cpus[(first + n) % len(machine.cpus)] for n in range(ranks * each)]
    bound = [",".join(map(str, cores[rank * each : (rank + 1) * each])) for rank in range(ranks)]
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(bound)}


def _names(gpus: list[int] | None) -> tuple[str, ...] | None:
    return None if gpus is None else tuple(map(str, gpus))
