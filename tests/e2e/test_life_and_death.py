"""How graphs end, whatever ends them, and that nothing is left of them."""

import os
import signal

from components.launch.state import GraphPhase
from tests.support.launched import Launched


def test_ctrl_c_leaves_no_process(own_graph: Launched) -> None:
    """Ctrl-C: exit code 0, and not one process of the graph is there any more."""
    assert own_graph.interrupt() == 0
    assert own_graph.left_over(wait_s=0) == []
    assert own_graph.state.phase is GraphPhase.STOPPED


def test_a_killed_supervisor_leaves_no_process(own_graph: Launched) -> None:
    """Kill -9 of the supervisor: everything goes, engines' inner processes too; `ps` says so and `down` tidies up."""
    os.kill(own_graph.program.pid, signal.SIGKILL)
    own_graph.program.wait()
    assert own_graph.left_over() == []
    assert "its supervisor was killed" in own_graph.run("ps").stderr
    (view,) = own_graph.ps()
    assert view.state is GraphPhase.FAILED
    assert all(row.pid is None for row in view.processes)
    assert own_graph.run("down").returncode == 0
    assert own_graph.ps() == []
