"""The benchmark's one entry: runs the pieces in turn, each bounded in time, and writes what they found.

    penstock bench [PIECE…] [--list] [--rounds N] [--json DIR] [--quick]        # or: make bench ARGS="…"

A piece that fails or takes too long is reported, and the rest goes on. `python -m benchmarks.document` makes
docs/benchmarks.md of it.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.findings import Outcome, number, text_of
from benchmarks.peers import FOLDER, PEERS, ROOT, PeerError
from benchmarks.pieces import PIECES, Effort, Piece, missing
from benchmarks.report import machine, show
from benchmarks.servers import QUIET

RESULTS = ROOT / "benchmarks" / "results"
_GRACE_S = 15


def run_piece(piece: Piece, effort: Effort, folder: Path) -> Outcome:
    """Run one piece in processes of its own and return how it ended; it leaves ``PIECE.json`` in `folder`."""
    argv = [sys.executable, "-m", *piece.arguments(effort)]
    command = shlex.join(["python", *argv[1:]]).replace(str(FOLDER), FOLDER.name)
    if why := missing(piece.needs):
        return Outcome(piece.name, command, failure=f"not run: {why}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "raw.json"
        failure = run_bounded([*argv, piece.json_flag, str(written)], piece.limit_s, folder / f"{piece.name}.log")
        took_s = time.perf_counter() - began
        if failure:
            outcome = Outcome(piece.name, command, took_s, failure=failure)
        else:
            raw = msgspec.json.decode(written.read_bytes())
            outcome = Outcome(piece.name, command, took_s, piece.read(raw), machine=raw.pop("machine"), raw=raw)
    return outcome


def run_bounded(argv: list[str], limit_s: float, log: Path) -> str:
    """Run a command in the checkout for at most `limit_s` seconds; return why it failed, empty when it did not."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **QUIET}, start_new_session=True
        )
        failure = ""
        try:
            if status := process.wait(limit_s):
                failure = f"ended with {status}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            failure = f"took longer than {limit_s:g} s"
        finally:
            _end(process)
    return failure


def last_line(log: Path) -> str:
    """Return the last thing a piece said."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End whatever of the process's session is left: first asked to, so that it can end its own, then made to."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        until = time.monotonic() + _GRACE_S
        while time.monotonic() < until and _alive(process.pid):
            process.poll()
            time.sleep(0.1)
    process.wait()


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def tell(outcomes: list[Outcome]) -> None:
    """Print one table of all figures and one of all goals."""
    figures, goals = [], []
    for outcome in outcomes:
        if outcome.findings is None:
            figures.append([outcome.piece, outcome.failure, "", ""])
            continue
        for figure in outcome.findings.figures:
            samples = [f"{name}: {text_of(values)}" for name, values in figure.samples.items()]
            figures.append([outcome.piece, figure.name, figure.unit, "\n".join(samples)])
        for goal in outcome.findings.goals:
            value = "-" if goal.value is None else number(goal.value)
            verdict = {True: "reached", False: "MISSED", None: "not measured"}[goal.reached]
            goals.append([outcome.piece, goal.name, value, f"{goal.sense} {number(goal.bound)} {goal.unit}", verdict])
    show("Figures: median (min to max, rounds)", ["piece", "what", "unit", "figures"], figures)
    show("Goals", ["piece", "what", "measured", "goal", ""], goals)


def listing() -> None:
    """Print the pieces."""
    rows = [[piece.name, piece.compares, f"{piece.limit_s:g} s", piece.needs, missing(piece.needs)] for piece in PIECES]
    show("Pieces", ["name", "what it compares", "at most", "needs", "here"], rows)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help="default: all; see --list")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--rounds", type=int, help="of every piece; default: each its own")
    where = "where results go; default: benchmarks/results of the checkout"
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="DIR", help=where)
    parser.add_argument(
        "--quick", action="store_true", help="one short round of each: shows that it works, measures nothing"
    )
    asked = parser.parse_args()
    known = {piece.name: piece for piece in PIECES}
    if unknown := set(asked.pieces) - set(known):
        parser.error(f"no piece is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if asked.list:
        listing()
        return
    for sign in (signal.SIGTERM, signal.SIGHUP):  # leave the piece that runs no less than on Ctrl-C
        signal.signal(sign, lambda sign, _: sys.exit(128 + sign))
    asked.json.mkdir(parents=True, exist_ok=True)
    chosen = [known[name] for name in asked.pieces or known]
    if {"index", "control-plane"} & {piece.name for piece in chosen}:
        install_peers()
    outcomes = []
    for piece in chosen:
        print(f"{piece.name}: {piece.compares} …", flush=True)
        outcome = run_piece(piece, Effort(asked.rounds, asked.quick), asked.json)
        (asked.json / f"{piece.name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=1) + b"\n")
        print(f"{piece.name}: {outcome.failure or 'done'} after {outcome.took_s:.0f} s", flush=True)
        outcomes.append(outcome)
    print(machine())
    tell(outcomes)
    sys.exit(any(outcome.findings is None and not outcome.failure.startswith("not run") for outcome in outcomes))


def install_peers() -> None:
    """Install the peers that are not there yet, so that no piece's time goes into it."""
    for peer in PEERS.values():
        try:
            print(f"{peer.name} {peer.install()}", flush=True)
        except PeerError as error:
            print(f"{peer.name} will be missing: {error}", flush=True)


if __name__ == "__main__":
    main()
