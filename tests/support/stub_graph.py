"""A graph of stub processes, and a program that supervises one: ``python -m tests.support.stub_graph NAME=BEHAVIOUR …``."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from components.graph.load import graph_from_raw
from components.launch.launch import LaunchError, run_here
from components.launch.plan import NATS, Plan, ProcessSpec

ROOT = Path(__file__).parents[2]


def stub_plan(behaviours: Mapping[str, str], **supervision: float) -> Plan:
    """Return a plan of NATS and one stub a name; patience is short unless `supervision` says otherwise."""
    rules = {"start_timeout_s": 20.0, "restart_backoff_s": 0.1, "status_timeout_s": 3.0, "stop_timeout_s": 5.0}
    graph = graph_from_raw(
        {"model": "demo", "name": "stubs", "components": {"decode": {}}, "supervision": {**rules, **supervision}}
    )
    stubs = [
        ProcessSpec(name, "stub", "tests.support.stub_component", {"STUB": behaviour, "PYTHONPATH": str(ROOT)})
        for name, behaviour in behaviours.items()
    ]
    return Plan(graph, (NATS, *stubs))


def main() -> None:
    """Supervise the stubs named on the command line."""
    os.chdir(ROOT)
    pairs = dict(word.split("=") for word in sys.argv[1:])
    try:
        run_here(stub_plan(pairs), lambda _: None)
    except LaunchError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
