"""The ``dynamo-llm`` command: the flags of the program penstock's first users come from, turned into a graph.

Flags it does not know go to the engines as vLLM engine arguments. Those that would have no effect are refused.
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
    """An argument is no flag; the text names it."""


def graph_from_argv(argv: list[str]) -> tuple[Graph, argparse.Namespace]:
    """Return the graph that the flags describe, and the flags.

    Raises:
        FlagError: an argument is no flag.
        GraphError: a value makes no sense, or a flag has no effect beside the others.
    """
    flags, rest = _parser().parse_known_args(argv)
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
            prefill_workers=flags.prefill_workers,
            prefill_tp=flags.prefill_tp or (flags.worker_tp if flags.prefill_workers else None),
            conditional_disagg=flags.conditional_disagg,
            max_local_prefill_length=flags.max_local_prefill_length,
            max_prefill_queue_size=flags.max_prefill_queue_size,
            router=None if flags.router == "none" else flags.router,
            host=flags.http_host,
            http_port=flags.http_port,
            block_size=flags.block_size,
            reuse_gpus=flags.reuse_gpus,
            engine_args=engine_args,
        )
    )
    return graph, flags


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dynamo-llm",
        description="Serve a model; other flags go to the engines as vLLM engine arguments.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="`demo`, a folder, or a Hugging Face model id")
    add("--router", choices=["none", "random", "round-robin", "kv"], default="none", help="how workers are chosen")
    add("--workers", type=_count, help="the same as --decode-workers")
    add("--decode-workers", type=_count, help="decode workers")
    add(
        "--prefill-workers",
        type=_length,
        default=0,
        help="prefill workers; they get every prompt, or see --conditional-disagg",
    )
    add("--worker-tp", type=_count, help="GPUs a worker of either kind")
    add("--decode-tp", type=_count, help="GPUs a decode worker, before --worker-tp")
    add("--prefill-tp", type=_count, help="GPUs a prefill worker, before --worker-tp; default: as a decode worker")
    add("--block-size", type=_count, help="tokens a KV block")
    add("--max-model-len", type=_count, help="longest prompt plus output, in tokens")
    add("--conditional-disagg", action="store_true", help="only long prompts go to prefill workers, while it pays")
    add("--max-local-prefill-length", type=_length, help="conditional: most uncached tokens a decode worker prefills")
    add("--max-prefill-queue-size", type=_count, help="conditional: with so many jobs waiting, decode workers prefill")
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


def _length(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, not {text}")
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
