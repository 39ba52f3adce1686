"""The ``dynamo-llm`` command: the flags of the program penstock's first users come from, turned into a graph.

Flags it does not know go to the engines as vLLM engine arguments. Those whose part penstock does not have yet are refused,
all of them in `_not_yet`.
"""

import argparse
import os
import sys

from components.graph.load import GraphError, dump_graph
from components.graph.schema import Graph
from components.launch.cli import plan_or_fail, run_in_foreground, show_plan
from components.launch.flags import ServeFlags, engine_args_from, graph_from_flags
from components.launch.target import fail


class FlagError(Exception):
    """A flag cannot be honoured; the text names it."""


def graph_from_argv(argv: list[str]) -> tuple[Graph, argparse.Namespace]:
    """Return the graph that the flags describe, and the flags.

    Raises:
        FlagError: a flag asks for what is not there, or is no flag.
        GraphError: a value makes no sense.
    """
    flags, rest = _parser().parse_known_args(argv)
    if refusal := _not_yet(flags):
        raise FlagError(refusal)
    try:
        engine_args = engine_args_from(rest)
    except ValueError as error:
        raise FlagError(str(error)) from error
    if flags.max_model_len is not None:
        engine_args["max_model_len"] = flags.max_model_len
    tensor_parallel = flags.decode_tp or flags.worker_tp
    if tensor_parallel is not None:
        engine_args["tensor_parallel_size"] = tensor_parallel
    workers = flags.decode_workers or flags.workers or 1
    graph = graph_from_flags(
        ServeFlags(
            model=flags.model,
            name=f"dynamo-llm-{flags.http_port}",
            decode_workers=workers,
            router=None if flags.router == "none" else flags.router,
            host=flags.http_host,
            http_port=flags.http_port,
            block_size=flags.block_size,
            reuse_gpus=flags.reuse_gpus,
            engine_args=engine_args,
        )
    )
    return graph, flags


def _not_yet(flags: argparse.Namespace) -> str | None:
    """Return which flag needs a part that this version does not have, or None."""
    disagg = {
        "--prefill-workers": flags.prefill_workers,
        "--prefill-tp": flags.prefill_tp,
        "--conditional-disagg": flags.conditional_disagg,
        "--max-local-prefill-length": flags.max_local_prefill_length,
        "--max-prefill-queue-size": flags.max_prefill_queue_size,
    }
    for flag, value in disagg.items():
        if value:
            return f"{flag}: this version has no prefill workers yet; every decode worker computes its own prefill"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dynamo-llm",
        description="Serve a model; other flags go to the engines as vLLM engine arguments.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="`demo`, a folder, or a Hugging Face model id")
    add("--router", choices=["none", "random", "round-robin", "kv"], default="none", help="how workers are chosen")
    add("--workers", type=_count, help="workers without disaggregation; the same as --decode-workers")
    add("--decode-workers", type=_count, help="decode workers")
    add("--prefill-workers", type=int, default=0, help="prefill workers")
    add("--worker-tp", type=_count, help="GPUs a worker")
    add("--decode-tp", type=_count, help="GPUs a decode worker")
    add("--prefill-tp", type=_count, help="GPUs a prefill worker")
    add("--block-size", type=_count, help="tokens a KV block")
    add("--max-model-len", type=_count, help="longest prompt plus output, in tokens")
    add("--conditional-disagg", action="store_true", help="prefill long prompts elsewhere")
    add("--max-local-prefill-length", type=int, help="tokens a worker prefills itself")
    add("--max-prefill-queue-size", type=int, help="above it workers prefill themselves")
    add("--http-host", default="127.0.0.1", help="address to listen on")
    add("--http-port", type=int, default=8181, help="port of the OpenAI endpoint")
    add("--reuse-gpus", action="store_true", help="workers may share GPUs")
    add("--hf-hub-offline", action="store_true", help="look up nothing on the Hugging Face hub")
    add("--dry-run", action="store_true", help="print the plan and start nothing")
    add("--print-graph", action="store_true", help="print the graph as YAML and start nothing")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def main() -> None:
    """Run the command."""
    try:
        graph, flags = graph_from_argv(sys.argv[1:])
    except (FlagError, GraphError) as error:
        fail(str(error))
    if flags.hf_hub_offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if flags.print_graph:
        sys.stdout.write(dump_graph(graph))
    elif flags.dry_run:
        show_plan(plan_or_fail(graph))
    else:
        run_in_foreground(plan_or_fail(graph))
