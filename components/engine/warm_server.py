"""The warm server's program: imports the modules it is told to, then forks children on request.

Run by `components.engine.warm.WarmPool` as ``python -m components.engine.warm_server PARENT LISTENER ALIVE MODULE…``. It
starts no thread, opens no device and never touches CUDA, so that its children can.
"""

import gc
import importlib
import os
import sys
from multiprocessing import context, forkserver

from components.engine import warm_process
from components.engine.warm_process import WarmContext, die_with_parent


def main(parent: int, listener_fd: int, alive_fd: int, preload: list[str]) -> None:
    """Serve until the last process that knows this server is gone."""
    die_with_parent(parent)
    os.setpgid(0, 0)  # the terminal's Ctrl-C is for the supervisor; one session, see docs/adr/0005
    gc.disable()  # nothing that is imported becomes garbage
    before = dict(os.environ)
    for module in preload:
        importlib.import_module(module)
    warm_process.set_by_imports.update({name: value for name, value in os.environ.items() if before.get(name) != value})
    context._concrete_contexts["spawn"] = WarmContext()  # type: ignore[attr-defined]
    server = os.getpid()
    os.register_at_fork(after_in_child=lambda: _settle(server))
    gc.freeze()  # a child that collects garbage need not look at, and so copy, what was there before the fork
    gc.enable()
    sys.stdout.flush()
    sys.stderr.flush()
    forkserver.main(listener_fd, alive_fd, [])


def _settle(server: int) -> None:
    """Run in a child right after the fork: die with the server, lead a process group."""
    if os.getppid() == server or os.getppid() == 1:
        die_with_parent(server)
        os.setpgid(0, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
