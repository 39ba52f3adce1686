"""Which graph a command means, and how a command ends when it cannot do what was asked."""

import sys
from typing import Annotated, NoReturn

import typer

from components.launch.state import GraphPhase, GraphState, StateFolder, all_states

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="The graph's name; not needed when only one runs.")]


def fail(message: str, exit_code: int = 2) -> NoReturn:
    """End the command with one line on standard error."""
    typer.echo(message, err=True)
    sys.exit(exit_code)


def one_state(name: str | None) -> GraphState:
    """Return the state of the graph `name`, or of the only one that runs, or end with what is wrong."""
    if name:
        state = StateFolder(name).read()
        if state is None or not is_there(state):
            fail(f"graph {name} is not running", exit_code=1)
        return state
    running = [state for state in all_states() if is_there(state)]
    if len(running) != 1:
        which = ", ".join(state.graph for state in running)
        fail(f"several graphs are running, name one of them: {which}" if running else "no graph is running", exit_code=1)
    return running[0]


def is_there(state: GraphState) -> bool:
    """Whether a graph runs, or was left behind by a killed supervisor."""
    return state.running or state.phase not in {GraphPhase.STOPPED, GraphPhase.FAILED}
