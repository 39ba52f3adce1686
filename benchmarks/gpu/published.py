"""The GPU part of docs/benchmarks.md, made of results that are kept with the page: `docs/benchmarks/gpu/*.json`.

    python -m benchmarks.gpu.published keep NAME RESULTS.json [--commit COMMIT]

keeps the results of `benchmarks.gpu.one`, `benchmarks.gpu.many`, `benchmarks.gpu.tp` or `benchmarks.engines_gpu` without the
raw answers and logs, as ``NAME.json``; what they are is seen from what is in them. `benchmarks.document` makes the page.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.findings import Figure, number, text_of

FOLDER = Path("docs/benchmarks/gpu")
_RAW = {"answers", "log", "functions_s", "minutes", "model", "size"}
_TTFT = ("mean", "p50", "p99")

_HEAD = """An 8B-shaped Llama with random weights, bfloat16; [gpu.md](gpu.md) says how it is measured and with which
commands. Each figure is one run of its window, unless a spread stands beside it; docs/log.md says what to make of them.
"""

Results = dict[str, Any]
"""What one script wrote down."""


def keep(results: Any) -> Any:
    """Return `results` without what is large."""
    if isinstance(results, dict):
        return {name: keep(value) for name, value in results.items() if name not in _RAW}
    return [keep(value) for value in results] if isinstance(results, list) else results


def read(folder: Path) -> dict[str, Results]:
    """Return what is kept in `folder`, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def section(kept: dict[str, Results], plot: str = "") -> str:
    """Return the part of the page; empty when nothing is kept.

    Args:
        kept: as `read` returns it.
        plot: the file of the plot, relative to the page; empty: none.
    """
    if not kept:
        return ""
    parts = [
        "## GPUs\n",
        _HEAD,
        *(f"- {name}: {_machine(results)}.{results.get('note', '')}" for name, results in kept.items()),
        "",
        *_engines([results for results in kept.values() if "steps" in results]),
        *(line for results in kept.values() for line in _one(results.get("results", {}))),
        *_routing(kept, plot),
        *_disaggregation(kept),
        *(line for results in kept.values() for line in _sizes(results.get("results", {}))),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def figures(kept: dict[str, Results]) -> dict[str, list[Figure]]:
    """Return what is plotted: by number of GPUs and quantity, a figure for each load."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for gpus, rate, router, run in _routed(kept):
        values = {"TTFT, mean": run["all"]["ttft_ms"]["mean"], "TTFT, p99": run["all"]["ttft_ms"]["p99"]}
        for what, value in values.items():
            loads = found.setdefault(f"{gpus} GPUs: {what} (ms)", {})
            loads.setdefault(f"{rate}/s a GPU", {}).setdefault(router, []).append(value)
    return {title: [Figure(load, "ms", samples) for load, samples in sorted(loads.items(), key=_rate)]
            for title, loads in sorted(found.items())}  # fmt: skip


def _rate(load: tuple[str, Any]) -> float:
    return float(load[0].split("/")[0])


def _machine(results: Results) -> str:
    machine = results["machine"]
    gpus = machine.get("gpus", [])
    used = results.get("gpus", 1)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    named = f"{used} of {len(gpus)} {gpus[0].split(',')[0]}" if gpus else "no GPU"
    return f"{named}, {machine['cores']} cores, Python {machine['python']}, {versions}; commit {machine['commit']}"


def _engines(runs: list[Results]) -> Iterator[str]:
    """Tell how long engines on demand take, against cold servers."""
    if not runs:
        return
    yield "### Engines on demand against vLLM's server, started cold\n"
    yield "Seconds until the first token, median (least to most) of turns; one GPU, both sides in turns, same arguments.\n"
    yield "| | seconds | turns |\n|---|---|---|"
    for results in runs:
        turns: dict[str, list[float]] = {}
        for name, step in results["steps"].items():
            if "total" in step:
                turns.setdefault(name.split("/")[0], []).append(step["total"])
        for name, totals in turns.items():
            yield f"| {name} | {text_of(totals)} | {len(totals)} |"
    yield ""
    created = [step for results in runs for step in results["steps"].values() if "delete_s" in step]
    kept = max((abs(after - before) / before for before, after in (step["memory_gib"] for step in created)), default=0.0)
    freed = text_of([step["free_again_s"] for step in created])
    yield f"From a deletion until the rank is free again: {freed} s; its GPU memory is as before, within {kept:.2%}.\n"
    for step in (step for results in runs for step in results["steps"].values() if "sleep_s" in step):
        times = {what: ", ".join(number(value) for value in step[f"{what}_s"]) for what in ("sleep", "wake")}
        used = ", ".join(number(value) for value in step["gpu_used_gib"])
        yield f"Sleep level 1, twice: {times['sleep']} s; waking: {times['wake']} s; GPU memory meanwhile: {used} GiB.\n"


def _one(pieces: Results) -> Iterator[str]:
    """Tell what penstock adds to bare vLLM."""
    if "overhead" not in pieces:
        return
    yield "### penstock against bare vLLM, one GPU\n"
    yield "| | TTFT ms: mean, p50, p99 | ms a token, p50 | tokens/s |\n|---|---|---|---|"
    for piece, what in (("overhead", "one at a time"), ("load", "32 at a time")):
        for side, name in (("vllm", "vLLM's server"), ("penstock", "penstock")):
            if run := pieces.get(piece, {}).get(side):
                rates = pieces[piece].get("output_tokens_per_s", {}).get(side, [])
                ttft = ", ".join(number(run["ttft_ms"][key]) for key in _TTFT)
                yield f"| {name}, {what} | {ttft} | {number(run['tpot_ms']['p50'])} | {text_of(rates)} |"
    yield ""
    if mix := pieces.get("mix"):
        yield "| new and repeated prompts of 8,000 tokens | TTFT ms: mean | floor | new, median | repeated, median |"
        yield "|---|---|---|---|---|"
        for name, run in mix.items():
            if "ttft_mean_ms" in run:
                medians = " | ".join(number(run["ttft_median_ms"][kind]) for kind in ("miss", "hit"))
                yield f"| {name} | {number(run['ttft_mean_ms'])} | {number(run['floor_mean_ms'])} | {medians} |"
        yield ""


def _routed(kept: dict[str, Results]) -> Iterator[tuple[int, str, str, Results]]:
    """Yield GPUs, requests a second and GPU, router and run."""
    for results in kept.values():
        for name, run in results.get("results", {}).items():
            if name.startswith("routing/"):
                _, load, router = name.split("/", 2)
                ours = router if "/" in router else f"penstock {router}"
                yield results["gpus"], load.removesuffix(" a GPU"), ours, run


def _routing(kept: dict[str, Results], plot: str) -> Iterator[str]:
    rows: dict[tuple[int, float, str], list[Results]] = {}
    for gpus, rate, router, run in _routed(kept):
        rows.setdefault((gpus, float(rate), router), []).append(run)
    if not rows:
        return
    yield "### Routers on conversations out of a trace\n"
    if plot:
        yield f"![routers]({plot})\n"
    columns = ["GPUs", "requests/s a GPU", "router", "TTFT ms: mean", "p50", "p99", "ms a token", "tokens/s", "goodput/s"]
    columns += ["hits", "could be, by whole blocks of the trace"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for (gpus, rate, router), runs in sorted(rows.items(), key=lambda row: row[0][:2]):
        found = [run["all"] for run in runs]
        cells = [text_of([each["ttft_ms"][key] for each in found]) for key in _TTFT]
        cells += [text_of([each["tpot_ms"]["mean"] for each in found])]
        cells += [text_of([each[key] for each in found]) for key in ("output_tokens_per_s", "goodput_per_s")]
        hits = f"{statistics.median(run['hit_rate'] for run in runs):.3f} | {runs[0]['best_hit_rate']:.3f}"
        failed = sum(each["failed"] for each in found)
        yield f"| {gpus} | {rate:g} | {router}{f', {failed} failed' if failed else ''} | {' | '.join(cells)} | {hits} |"
    yield ""


def _disaggregation(kept: dict[str, Results]) -> Iterator[str]:
    rows = []
    for results in kept.values():
        for name, run in results.get("results", {}).items():
            for kind in ("short", "long") if name.startswith("disagg/") else ():
                each = run[kind]
                cells = [number(each[what][key]) for what, key in _DISAGG] + [number(each["longest_pause_ms"])]
                where = "prefill workers" if name.endswith("apart") else "none"
                rows.append(
                    f"| {results['gpus']} | {where} | {kind} | {' | '.join(cells)} | {number(each['goodput_per_s'])} |"
                )
    if rows:
        yield "### Half of the engines as prefill workers, short and long prompts mixed\n"
        yield "| GPUs | | prompts | TTFT ms: mean | p50 | p99 | ITL ms: p50 | p99 | longest pause ms | goodput/s |"
        yield "|---" * 10 + "|"
        yield from rows
        yield ""


def _sizes(pieces: Results) -> Iterator[str]:
    """Tell what engines of different tensor-parallel sizes share, and of remote prefill between equal ones."""
    if "keys" not in pieces:
        return
    yield "### Tensor-parallel sizes and LMCache\n"
    yield "| stored by | tokens | loaded by itself | loaded by the other | the other's text is right |"
    yield "|---|---|---|---|---|"
    for name, found in pieces["keys"].items():
        right = found["the other's text is what it computes alone"]
        counts = (found[what] for what in ("tokens", "loaded by itself", "loaded by the other"))
        cells = [name.removesuffix(" stores"), *(f"{count:,}" for count in counts), "yes" if right else "no"]
        yield f"| {' | '.join(cells)} |"
    if graph := pieces.get("penstock"):
        done, same = graph["remote prefills"], graph["same text as vLLM's own server"]
        yield f"\nPrefill and decode worker of two GPUs each: {done} of {graph['prompts']} prompts prefilled remotely,"
        yield f"{graph['tokens loaded']:,} tokens loaded, {same} with the text of vLLM's own server."
    yield ""


_DISAGG = (("ttft_ms", "mean"), ("ttft_ms", "p50"), ("ttft_ms", "p99"), ("itl_ms", "p50"), ("itl_ms", "p99"))


def main() -> None:
    """Keep one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["keep"])
    parser.add_argument("name", help="of the file that is made")
    parser.add_argument("results", type=Path)
    parser.add_argument("--commit", help="that ran, where the results do not know")
    parser.add_argument("--note", help="what a reader must know of this run")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args()
    kept = keep(json.loads(asked.results.read_text()))
    if asked.commit:
        kept["machine"]["commit"] = asked.commit
    if asked.note:
        kept["note"] = f" {asked.note}"
    asked.folder.mkdir(parents=True, exist_ok=True)
    (asked.folder / f"{asked.name}.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
