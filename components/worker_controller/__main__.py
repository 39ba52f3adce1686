"""``python -m components.worker_controller``: starts the pool and the REST API; no model is named."""

import argparse
import asyncio
import inspect
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import uvloop

from components.engine.devices import visible_gpus, vllm_on_cpu
from components.engine.vllm_args import ENVIRONMENT as VLLM_ENVIRONMENT
from components.engine.vllm_args import known_engine_args
from components.engine.warm import WarmPool
from components.graph.keys import ENVIRONMENT as API_KEY
from components.graph.keys import ApiKeys, is_loopback
from components.graph.schema import ControllerSettings
from components.http.edge import Edge, Limits
from components.http.server import Address, ListenError, listen
from components.telemetry.folders import NoFolderError, socket_folder, state_root
from components.telemetry.logs import setup_logging
from components.worker_controller.app import OPEN_ROUTES, Api
from components.worker_controller.controller import Controller
from components.worker_controller.hub import Hub
from components.worker_controller.placement import Folders, engine_environment, rank_environments
from components.worker_controller.pool import Pool
from components.worker_controller.starts import GraphFileError, Joined, read_graphs

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 1 << 20
_WORKERS = ("components.worker.engine_process", "components.decode.service", "components.prefill.service")
_PRELOAD = (
    "components.worker_controller.rank",
    "components.worker_controller.engine_server",
    "components.worker_controller.server_modules",
)


class CannotStartError(Exception):
    """The controller cannot run here; the text is one line and names the setting at fault."""


class _Finished(Exception):  # noqa: N818 no error: it ends the TaskGroup
    """The controller was told to stop and has stopped; its background tasks may go."""


def check(settings: ControllerSettings, keys: ApiKeys) -> None:
    """Refuse settings that cannot work, before anything starts.

    Raises:
        CannotStartError: one cannot.
    """
    if known_engine_args() is None:
        raise CannotStartError("vLLM is not installed; pip install 'penstock[cpu]' or 'penstock[gpu]'")
    if not is_loopback(settings.host) and not keys:
        raise CannotStartError(f"host: {settings.host} can be reached from elsewhere; set {API_KEY}")
    if settings.workers is not None and settings.workers < 1:
        raise CannotStartError(f"workers: must be at least 1, not {settings.workers}")
    if not 0 < settings.first_engine_port <= settings.last_engine_port < 65536:
        raise CannotStartError("first_engine_port: must be 1 to 65535, and not above last_engine_port")
    gpus = visible_gpus()
    if not vllm_on_cpu() and (settings.workers or 1) > len(gpus):
        raise CannotStartError(f"workers: {settings.workers or 1} GPUs are needed, {len(gpus)} visible")


async def serve(settings: ControllerSettings, folders: Folders, graphs: Mapping[str, Joined]) -> None:
    """Run the controller until SIGINT or SIGTERM.

    Args:
        settings: checked.
        folders: for sockets and logs; they exist.
        graphs: those that engines may join.

    Raises:
        CannotStartError: the port cannot be had.
    """
    keys, on_cpu = ApiKeys.from_environment(), vllm_on_cpu()
    variables = {**VLLM_ENVIRONMENT, **{name: value for name, value in os.environ.items() if name != API_KEY}}
    hub = Hub(folders.sockets / "controller")
    modules = [*_PRELOAD, *(_WORKERS if graphs else ())]
    warm = WarmPool({**variables, "PYTHONSAFEPATH": "1"}, modules, folders.logs / "warm.log", sockets=folders.sockets)
    stopping = _stop_signals()
    try:
        async with asyncio.TaskGroup() as tasks:
            pool = Pool(settings, warm, hub, folders, rank_environments(settings, variables, visible_gpus(), on_cpu=on_cpu))
            controller = Controller(
                settings, pool, warm, hub, folders, engine_environment(variables, keys), tasks, graphs, on_cpu=on_cpu
            )
            edge = Edge(keys, Limits(_MAX_BODY_BYTES), open_routes=OPEN_ROUTES)
            runner = await listen(Api(controller, edge).make(), Address(settings.host, settings.port), drain_s=1.0)
            await hub.open()
            warm.open()
            tasks.create_task(pool.run())
            log.info("listening", extra={"url": f"http://{settings.host}:{settings.port}", "logs": str(folders.logs)})
            await stopping.wait()
            await controller.close()
            await runner.cleanup()
            _finish()
    except* _Finished:
        log.info("stopped")
    except* ListenError as group:
        raise CannotStartError(str(group.exceptions[0])) from None
    finally:
        await hub.close()
        await asyncio.to_thread(warm.close)


def _finish() -> NoReturn:
    raise _Finished


def _stop_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stopping.set)
    return stopping


def run(settings: ControllerSettings) -> int:
    """Run the controller to its end and return its exit code."""
    setup_logging("controller", "info", "text")
    try:
        check(settings, ApiKeys.from_environment())
        graphs = read_graphs(settings.graph)
        with socket_folder() as sockets:
            uvloop.run(serve(settings, Folders(sockets, _log_folder(settings.port)), graphs))
    except (CannotStartError, GraphFileError, NoFolderError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _log_folder(port: int) -> Path:
    """Return the folder for the logs of the controller at `port`, emptied, for this user only."""
    folder = state_root().absolute() / f"controller-{port}"
    shutil.rmtree(folder / "logs", ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    folder.chmod(0o700)
    return folder / "logs"


def read_flags(argv: Sequence[str], program: str = "components.worker_controller") -> ControllerSettings:
    """Return the settings that the flags `argv` ask for: one flag a setting, ``--kv-cache-gb 2``.

    Raises:
        msgspec.ValidationError: a value is of the wrong type.
        SystemExit: a flag is unknown, or ``--help`` was among them.
    """
    parser = argparse.ArgumentParser(prog=program, description="A pool of warm workers; engines on demand, over REST.")
    meanings = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(ControllerSettings), re.MULTILINE))
    for field in msgspec.structs.fields(ControllerSettings):
        flag, meaning = f"--{field.name.replace('_', '-')}", meanings[field.name]
        if field.type is bool:
            parser.add_argument(flag, action="store_true", help=meaning)
        elif field.name == "graph":
            parser.add_argument(flag, action="append", default=[], metavar="FILE", help=meaning)
        else:
            parser.add_argument(flag, default=field.default, metavar="VALUE", help=f"{meaning} (default {field.default})")
    given: dict[str, Any] = vars(parser.parse_args(argv))
    return msgspec.convert(given, ControllerSettings, strict=False)


def main(argv: Sequence[str] | None = None, program: str = "components.worker_controller") -> int:
    """Run what the flags ask for, by default those of the command line, and return the exit code."""
    try:
        return run(read_flags(sys.argv[1:] if argv is None else argv, program))
    except msgspec.ValidationError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
