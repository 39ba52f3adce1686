"""Where things are on this machine: folders, ranks, a rank's cores, what processes have in their environment."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.graph.keys import ApiKeys
from components.graph.schema import ControllerSettings


@dataclass(frozen=True)
class Folders:
    """Where a controller keeps what it needs.

    Attributes:
        sockets: see `socket_folder`; each engine has a folder in it.
        logs: one file a process.
    """

    sockets: Path
    logs: Path


_NODES = Path("/sys/devices/system/node")


def rank_environments(
    settings: ControllerSettings, variables: Mapping[str, str], gpus: Sequence[str], *, on_cpu: bool
) -> list[Mapping[str, str]]:
    """Return the variables of each rank's process; their number is the pool's size.

    Args:
        settings: the controller's.
        variables: what all processes get.
        gpus: the visible ones.
        on_cpu: whether vLLM computes on the CPU.
    """
    if not on_cpu:
        return [{**variables, **_caches(rank, variables)} for rank in range(settings.workers or len(gpus))]
    cpus = sorted(os.sched_getaffinity(0))
    count = settings.workers or max(1, len(list(_NODES.glob("node[0-9]*"))))
    # gloo would look for the machine's name in DNS, and listen on the address that it finds.
    return [
        {"GLOO_SOCKET_IFNAME": "lo", **variables, **_openmp(cores)}
        for cores in (cores_of(rank, count, cpus) for rank in range(count))
    ]


def _caches(rank: int, variables: Mapping[str, str]) -> dict[str, str]:
    """Return where the rank of a GPU keeps what it compiles.

    vLLM files compiled models by their rank in the engine, and what it finds there names the GPU that it was compiled on,
    which here is the pool's rank: each GPU has its own files, the first one those of every vLLM on this machine.
    Triton's kernels suit every GPU and model, but once vLLM has compiled a model it keeps them with that one.
    """
    home = Path(variables.get("HOME") or Path.home())
    cache = Path(variables.get("XDG_CACHE_HOME") or home / ".cache")
    vllm = Path(variables.get("VLLM_CACHE_ROOT") or cache / "vllm")
    triton = Path(variables.get("TRITON_HOME") or home) / ".triton" / "cache"
    return {
        "VLLM_CACHE_ROOT": str(vllm / f"penstock-gpu-{rank}" if rank else vllm),
        "TRITON_CACHE_DIR": variables.get("TRITON_CACHE_DIR") or str(triton),
    }


def cores_of(rank: int, ranks: int, cpus: Sequence[int]) -> list[int]:
    """Return the cores of one rank: an equal share, less one for the engine's other processes where there is one to spare.

    Ranks share cores where there are more ranks than cores.
    """
    if ranks >= len(cpus):
        return [cpus[rank % len(cpus)]]
    usable = cpus[: len(cpus) - 1] if len(cpus) - 1 >= ranks else cpus
    share = len(usable) // ranks
    return list(usable[rank * share : (rank + 1) * share])


def _openmp(cores: Sequence[int]) -> dict[str, str]:
    places = "{" + ",".join(map(str, cores)) + "}"
    return {"OMP_NUM_THREADS": str(len(cores)), "OMP_PLACES": places, "OMP_PROC_BIND": "true"}


def engine_environment(variables: Mapping[str, str], keys: ApiKeys) -> dict[str, str]:
    """Return the variables of engines' processes: `variables`, one thread where no rank is, the key that clients show."""
    token = keys.authorization.get("Authorization", "").removeprefix("Bearer ")
    return {**variables, "OMP_NUM_THREADS": "1", **({"VLLM_API_KEY": token} if token else {})}


def in_url(host: str) -> str:
    """Return `host` as it stands in a URL; an address that means all of this machine's is none that a client can use."""
    if host in {"0.0.0.0", "::"}:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
