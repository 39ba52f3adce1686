"""The program of an engine's first process; all it does is in `engine_server`, which the warm server has imported."""

import sys

from components.worker_controller.engine_server import main

if __name__ == "__main__":
    sys.exit(main())
