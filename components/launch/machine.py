"""What this machine has: GPUs, CPU cores, free ports, and which build of vLLM. Looks, changes nothing."""

import errno
import os
import socket

import psutil

from components.engine.devices import visible_gpus, vllm_on_cpu
from components.graph.keys import ApiKeys
from components.launch.devices import Machine, PlanError
from components.launch.plan import Listener
from components.launch.state import graph_process


def look(ports: dict[int, Listener]) -> Machine:
    """Return the facts of this machine.

    Args:
        ports: port → where it shall be bound; only these are tried.

    Raises:
        PlanError: an address is not one of this machine.
    """
    found = {port: port_holder(listener.host, port, listener.setting) for port, listener in ports.items()}
    holders = {port: holder for port, holder in found.items() if holder}
    return Machine(
        gpus=visible_gpus(),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        vllm_on_cpu=vllm_on_cpu(),
        port_holders=holders,
        variables=frozenset(os.environ),
        api_keys=bool(ApiKeys.from_environment()),
    )


def port_holder(host: str, port: int, setting: str = "http.port") -> str | None:
    """Return who listens on `port`, for a person; None when it can be bound.

    Tries to bind without SO_REUSEPORT, so that another graph's processors count as holders.

    Raises:
        PlanError: it cannot be bound for another reason, such as a foreign address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise PlanError(f"{setting.replace('port', 'host')}: {host} is no address: {error.strerror}") from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no holder
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return _listener(port) or "a process of another user"
            raise PlanError(f"{setting}: cannot listen on {host}:{port}: {error.strerror}") from error
    return None


def free_port(host: str, setting: str) -> int:
    """Return a port of `host` that nobody has now; `setting` names it in errors.

    Raises:
        PlanError: nobody can listen on that address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise PlanError(f"{setting}: cannot listen on {host}: {error.strerror}") from error


def _listener(port: int) -> str | None:
    """Return ``pid 123 (nginx -g …)`` or ``pid 123 (processor-0 of graph agg)`` for the holder of `port`; None if unseen."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    pids = [c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid]
    for pid in pids:
        try:
            command = " ".join(psutil.Process(pid).cmdline())
        except psutil.Error:
            continue
        return f"pid {pid} ({graph_process(pid) or command[:80]})"
    return None
