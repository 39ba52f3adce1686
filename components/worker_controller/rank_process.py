"""The program of a rank; all it does is in `rank`, which the warm server has imported."""

import sys

from components.worker_controller.rank import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
