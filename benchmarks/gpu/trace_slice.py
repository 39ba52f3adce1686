"""Cut whole conversations out of a long trace, so that it can be carried to a machine without a network.

python -m benchmarks.gpu.trace_slice TRACE OUT [--requests 2000]
"""

import argparse
from pathlib import Path

from benchmarks.gpu.traffic import best_hit_rate, take_sessions
from components.simulate.trace import read_trace, write_trace


def main() -> None:
    """Write the slice, and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, help="in Mooncake's format")
    parser.add_argument("out", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    whole = read_trace(options.trace)
    taken = take_sessions(whole, options.requests, longest=10**9)
    write_trace(options.out, taken)
    print(
        f"{len(taken)} of {len(whole)} requests, {options.out.stat().st_size} bytes; "
        f"{best_hit_rate(taken):.3f} of the blocks could be cached, {best_hit_rate(whole):.3f} of the whole trace's"
    )


if __name__ == "__main__":
    main()
