"""A processor process: loads the tokenizer, listens for workers and for HTTP, serves until told to stop, drains."""

import asyncio
import gc
import sys

from aiohttp import web

from components.bus.process import FatalError, Process, run
from components.graph.keys import ENVIRONMENT, ApiKeys
from components.graph.schema import Graph, VllmEngine
from components.http.server import Address, ListenError, Runner, listen
from components.model.folder import ModelError, model_folder
from components.model.tokenizer import Tokenizer
from components.processor.app import App
from components.processor.defaults import Defaults, load_defaults
from components.processor.fleet import Fleet
from components.processor.metrics import Metrics, Watched
from components.processor.pipeline import Pipeline
from components.processor.routing import Router
from components.processor.streams import Patience, Streams
from components.processor.workers import Workers
from components.wire.process import ProcessState
from components.wire.routing import TokenizeQuery

_DRAIN_MARGIN_S = 5.0
_QUEUE = "processors"
_REMEMBERED_CHARS = 8 * 1024 * 1024


async def serve(process: Process) -> None:
    """Run one processor until it is told to stop.

    Raises:
        FatalError: the model's tokenizer or the port cannot be had, or settings contradict each other.
    """
    graph, member = process.graph, process.member
    tokenizer = await asyncio.to_thread(_load_tokenizer, graph)
    defaults = await asyncio.to_thread(_load_defaults, graph)
    fleet = Fleet(graph.model_name)
    streams = Streams(Patience(graph.http.first_token_timeout_s, graph.http.inactivity_timeout_s))
    silence_timeout_s = graph.supervision.silence_timeout_s
    workers = Workers(
        process.bus, process.subjects, f"{member.name}-{member.incarnation}", fleet, streams, silence_timeout_s
    )
    metrics = Metrics(member.registry)
    member.registry.register(Watched(fleet, streams))
    settings = graph.components.router
    router = Router(process.bus, process.subjects, settings.timeout_s, member.registry) if settings else None
    pipeline = Pipeline(
        graph.model_name, graph.http, tokenizer, fleet, workers, metrics, router, graph.kv.block_size, defaults
    )
    keys = ApiKeys.from_environment()
    if graph.http.isolate_api_keys and not keys:
        raise FatalError(f"http.isolate_api_keys: needs API keys in {ENVIRONMENT}")
    app = App(graph.http, keys, pipeline, fleet, metrics, process.bus, process.subjects, member)
    await workers.listen()
    works = [workers.watch(), workers.send_cancels()]
    if router is not None:
        works.append(router.send_notices())
        await process.bus.serve(process.subjects.tokenize(), TokenizeQuery, pipeline.tokenize, _QUEUE)
    background = [process.tasks.create_task(work) for work in works]
    runner = await _open(app.make(), graph)
    gc.collect()
    gc.freeze()  # what is here now stays; no collection has to look at it again
    member.become(ProcessState.READY, f"http port {graph.http.port}")
    await member.stopping.wait()
    member.become(ProcessState.DRAINING)
    await runner.cleanup()
    if router is not None:
        await router.flush()
    for task in background:
        task.cancel()


def _load_tokenizer(graph: Graph) -> Tokenizer:
    try:
        # How long tokenizing takes would tell one tenant what another has sent.
        return Tokenizer(model_folder(graph.model), 0 if graph.http.isolate_api_keys else _REMEMBERED_CHARS)
    except ModelError as error:
        raise FatalError(str(error)) from error


def _load_defaults(graph: Graph) -> Defaults:
    decode = graph.components.decode
    args = decode.engine.args if decode and isinstance(decode.engine, VllmEngine) else {}
    try:
        return load_defaults(model_folder(graph.model), args)
    except ModelError as error:
        raise FatalError(str(error)) from error


async def _open(app: web.Application, graph: Graph) -> Runner:
    """Listen for HTTP; several replicas share the port."""
    http = graph.http
    replicas = graph.components.processor.replicas if graph.components.processor else 1
    address = Address(http.host, http.port, http.tls_cert_file, http.tls_key_file, shared=replicas > 1)
    drain_s = max(1.0, graph.supervision.stop_timeout_s - _DRAIN_MARGIN_S)
    try:
        return await listen(app, address, drain_s)
    except ListenError as error:
        raise FatalError(f"http.{error}") from error


if __name__ == "__main__":
    sys.exit(run("processor", serve))
