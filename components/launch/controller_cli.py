"""``penstock controller``, and ``penstock engines …``, which asks a running one over HTTP."""

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import psutil
import typer
from rich.console import Console

from components.graph.keys import ENVIRONMENT, ApiKeys
from components.launch.flags import engine_args_from
from components.launch.state import StateFolder
from components.launch.target import fail, one_state
from components.launch.views import make_table

engines_app = typer.Typer(
    help="Create, list and delete the engines of a worker controller.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_TOKEN = "PENSTOCK_NATS_TOKEN"  # noqa: S105 a variable's name
_URL_VARIABLE = "PENSTOCK_CONTROLLER"
_TIMEOUT_S = 10.0
_LOAD_TIMEOUT_S = 3600.0
_POLL_S = 0.1

Url = Annotated[str, typer.Option("--controller", envvar=_URL_VARIABLE, help="The controller's address.")]
Uuid = Annotated[str, typer.Argument(metavar="UUID", help="The engine's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
_DEFAULT_URL = "http://127.0.0.1:8000"


class _Refused(Exception):  # noqa: N818 the controller's answer, not an error here
    """The controller answers with an error, or not at all; the text says why."""


def controller(context: typer.Context) -> None:
    """Start a pool of warm workers and its REST API; --help lists the flags."""
    from components.worker_controller.__main__ import main  # it is a program of its own; no other command needs it

    sys.exit(main(_with_files(context.args), "penstock controller"))


def _with_files(words: list[str]) -> list[str]:
    """Return `words` with the file of each running graph that ``--graph`` names.

    A graph's embedded NATS server has a token that only its processes know; being this user, we may ask one of them.
    """
    found = list(words)
    for position, word in enumerate(words):
        if position == 0 or words[position - 1] != "--graph" or Path(word).exists():
            continue
        state = one_state(word)
        found[position] = str(StateFolder(word).graph_file)
        server = next((process.pid for process in state.processes if process.component == "nats"), None)
        if server is not None and (token := psutil.Process(server).environ().get(_TOKEN)):
            os.environ[_TOKEN] = token
    return found


@engines_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def create(
    context: typer.Context,
    uuid: Uuid,
    model: Annotated[str | None, typer.Option(help="`demo`, a folder, or a Hugging Face model id.")] = None,
    role: Annotated[str, typer.Option(help="api, or decode or prefill to join a running graph.")] = "api",
    graph: Annotated[str | None, typer.Option(help="That graph's name, where the controller knows several.")] = None,
    url: Url = _DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create an engine and wait until it answers. Other flags are vLLM's: --max-model-len 4096."""
    if uuid.startswith("-"):
        fail(f"the engine's name comes first, then flags such as {uuid}")
    try:
        args = engine_args_from(context.args)
    except ValueError as error:
        fail(str(error))
    chosen = {"model": model, "role": role, "graph": graph}
    body = {"engine_uuid": uuid, **{name: value for name, value in chosen.items() if value is not None}, **args}
    made = _create(url, uuid, body)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    total_s = (made["create_timings"] or {}).get("total_s", 0.0)
    typer.echo(f"{uuid} is running after {total_s:.1f} s on ranks {made['assigned_ranks']}: {made['api_url']}")


def _create(url: str, uuid: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask for an engine, and tell what it is doing until the answer is there."""
    answer: list[dict[str, Any]] = []
    refusal: list[_Refused] = []

    def ask() -> None:
        try:
            answer.append(_fetch(url, "POST", "/engines", body, _LOAD_TIMEOUT_S))
        except _Refused as error:
            refusal.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    began, told = time.monotonic(), ""
    asking.start()
    while asking.is_alive():
        asking.join(_POLL_S)
        doing = _doing(url, uuid)
        if doing and doing != told and asking.is_alive():
            typer.echo(f"{time.monotonic() - began:7.1f} s  {doing}", err=True)
            told = doing
    if refusal:
        fail(str(refusal[0]), exit_code=1)
    return answer[0]


def _doing(url: str, uuid: str) -> str:
    try:
        return str(_fetch(url, "GET", f"/engines/{quote(uuid, safe='')}").get("doing", ""))
    except _Refused:
        return ""


@engines_app.command(name="list")
def list_engines(url: Url = _DEFAULT_URL, as_json: AsJson = False) -> None:
    """List engines, those that failed with the reason, and the ranks."""
    try:
        engines, workers = _fetch(url, "GET", "/engines"), _fetch(url, "GET", "/workers")
    except _Refused as error:
        fail(str(error), exit_code=1)
    if as_json:
        typer.echo(json.dumps({**engines, **workers}, indent=2))
        return
    table = make_table("engine", "state", "model", "role", "address", "ranks", "pid", "why")
    for each in engines["engines"]:
        row = (each["state"], each["model"], each["role"], each["api_url"], each["assigned_ranks"], each["pid"])
        table.add_row(each["engine_uuid"], *(_cell(value) for value in row), each["error"] or each["doing"])
    ranks = make_table("rank", "status", "engine", "pid", "memory", "engines", "replaced", "why")
    for each in workers["workers"]:
        memory = "-" if each["memory_bytes"] is None else f"{each['memory_bytes'] / 2**20:.0f} MB"
        row = (each["status"], each["assigned_to"], each["pid"], memory, each["engines_served"], each["replaced"])
        ranks.add_row(str(each["rank"]), *(_cell(value) for value in row), each["last_death"])
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False)
    console.print(table)
    console.print(ranks)


@engines_app.command()
def delete(uuid: Uuid, url: Url = _DEFAULT_URL) -> None:
    """End an engine; returns when its ranks and its port can be had again."""
    try:
        gone = _fetch(url, "DELETE", f"/engines/{quote(uuid, safe='')}", timeout_s=_LOAD_TIMEOUT_S)
    except _Refused as error:
        fail(str(error), exit_code=1)
    port = f", port {gone['released_port']}" if gone["released_port"] else ""
    typer.echo(f"{gone['message']}: ranks {gone['released_ranks']}{port} are free")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _fetch(url: str, method: str, path: str, body: Any = None, timeout_s: float = _TIMEOUT_S) -> Any:
    """Return the controller's answer.

    Raises:
        _Refused: it answers with an error, or not at all.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **ApiKeys.from_environment().authorization}
    if not url.startswith(("http://", "https://")):
        fail(f"--controller: must begin with http:// or https://, not {url}")
    request = urllib.request.Request(url.rstrip("/") + path, data, headers, method=method)  # noqa: S310 checked above
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310 checked above
            return msgspec.json.decode(response.read())
    except urllib.error.HTTPError as error:
        raise _Refused(_reason(error)) from None
    except OSError as error:
        raise _Refused(f"no controller answers at {url}: {getattr(error, 'reason', error)}") from None


def _reason(error: urllib.error.HTTPError) -> str:
    if error.code == HTTPStatus.UNAUTHORIZED:
        return f"the controller wants a token; set {ENVIRONMENT} as it was set for it"
    try:
        return str(msgspec.json.decode(error.read())["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"the controller answers {error.code}"
