"""``penstock cache-controller`` runs a cache controller; ``penstock cache …`` asks one over HTTP."""

import json
import sys
import urllib.error
import urllib.request
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from components.graph.keys import ENVIRONMENT, ApiKeys
from components.graph.load import GraphError, load_graph
from components.graph.schema import CacheController
from components.launch.state import GraphPhase, StateFolder, all_states, as_it_is
from components.launch.target import fail
from components.launch.views import make_table
from components.telemetry.folders import state_root

cache_app = typer.Typer(
    help="Ask a cache controller what LMCache holds, and where; act on it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_TIMEOUT_S = 60.0
_DEFAULTS = CacheController()
_URL = f"http://127.0.0.1:{_DEFAULTS.port}"

Url = Annotated[str, typer.Option(envvar="PENSTOCK_CACHE_CONTROLLER", help="The controller's address.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Tokens = Annotated[str, typer.Argument(help="Token ids, separated by commas or blanks; `-` reads them from standard input.")]
Instance = Annotated[str, typer.Argument(help="The instance's id.")]


def cache_controller(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = _DEFAULTS.host,
    port: Annotated[int, typer.Option(help="Port of the REST API.")] = _DEFAULTS.port,
    monitor_port: Annotated[
        int, typer.Option(help="Where LMCache workers push; the next two are for registration, beats.")
    ] = (_DEFAULTS.monitor_port),
    coordinator: Annotated[
        list[str] | None,
        typer.Option(help="URL of an `lmcache coordinator`; default: those of this machine's graphs."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; docs/settings.md lists them.")
    ] = None,
) -> None:
    """Run a cache controller: LMCache's controller interface, for in-process workers and for the graphs' LMCache servers."""
    chosen: dict[str, Any] = {"host": host, "port": port, "monitor_port": monitor_port}
    chosen["coordinators"] = coordinator or []
    chosen["state_file"] = str(state_root() / f"cache-controller-{port}.json")
    try:
        settings = msgspec.convert(chosen | dict(map(_setting, overrides or ())), CacheController, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        fail(str(error))
    try:
        from components.cache_controller.serve import main
    except ImportError as error:
        fail(f"the cache controller needs LMCache and pyzmq, as vLLM's installations have them: {error}")
    sys.exit(main(settings, None if settings.coordinators else _coordinators))


def _setting(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"--set {word}: must be NAME=VALUE")
    return name, value


def _coordinators() -> list[str]:
    """Return the coordinators of the graphs that serve on this machine now; a controller asks again and again."""
    found = []
    for state in all_states():
        if as_it_is(state).phase is not GraphPhase.READY:
            continue
        try:
            lmcache = load_graph(StateFolder(state.graph).graph_file).lmcache
        except GraphError:
            continue
        if lmcache and lmcache.coordinator and lmcache.coordinator_port:
            found.append(f"http://{lmcache.host}:{lmcache.coordinator_port}")
    return found


@cache_app.command()
def workers(url: Url = _URL, as_json: AsJson = False) -> None:
    """List the workers: where they are, how they hash, what they hold."""
    answer = _ask(url, "/controller/workers")
    table = make_table("instance", "worker", "kind", "address", "trust", "chunks", "hashing or model")
    for each in answer["workers"]:
        chunks = ", ".join(f"{location} {count}" for location, count in each["locations"].items()) or "-"
        about = each["hashing"] or each["details"].get("model_name") or "-"
        address = f"{each['ip']}:{each['port']}"
        table.add_row(each["instance_id"], str(each["worker_id"]), each["kind"], address, each["trust"], chunks, about)
    _show(answer, table, as_json)


@cache_app.command()
def lookup(tokens: Tokens, url: Url = _URL, as_json: AsJson = False) -> None:
    """Show which instances hold the beginning of a prompt, longest first."""
    answer = _ask(url, "/full_lookup", {"tokens": _tokens(tokens)})
    table = make_table("instance", "location", "tokens")
    for each in answer["matches"]:
        table.add_row(each["instance_id"], each["location"], str(each["matched_tokens"]))
    _show(answer, table, as_json)


@cache_app.command()
def clear(instance: Instance, location: Annotated[str, typer.Argument()] = "LocalCPUBackend", url: Url = _URL) -> None:
    """Drop all an instance holds at a location."""
    answer = _ask(url, "/clear", {"instance_id": instance, "location": location})
    typer.echo(f"cleared {answer['num_tokens']} tokens")


@cache_app.command()
def pin(
    instance: Instance, tokens: Tokens, location: Annotated[str, typer.Argument()] = "LocalCPUBackend", url: Url = _URL
) -> None:
    """Keep the beginning of a prompt from being evicted."""
    answer = _ask(url, "/pin", {"instance_id": instance, "location": location, "tokens": _tokens(tokens)})
    typer.echo(f"pinned {answer['num_tokens']} tokens")


@cache_app.command()
def environment(
    host: Annotated[str, typer.Option(help="Where the controller is, as the engine sees it.")] = "localhost",
    monitor_port: Annotated[int, typer.Option(help="The controller's --monitor-port.")] = _DEFAULTS.monitor_port,
) -> None:
    """Print what an engine needs in its environment, beside an LMCache YAML as LMCache's documents show it.

    LMCache refuses those YAMLs by now for want of an address; without heartbeats and a fixed seed a controller knows less.
    """
    typer.echo(f"LMCACHE_CONTROLLER_REPLY_URL={host}:{monitor_port + 1}")
    typer.echo("LMCACHE_LMCACHE_WORKER_HEARTBEAT_TIME=1")
    typer.echo("PYTHONHASHSEED=0")


def _tokens(text: str) -> list[int]:
    words = (sys.stdin.read() if text == "-" else text).replace(",", " ").split()
    try:
        return [int(word) for word in words]
    except ValueError:
        fail("tokens: must be whole numbers, separated by commas or blanks")


def _ask(url: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **ApiKeys.from_environment().authorization}
    try:
        request = urllib.request.Request(url.rstrip("/") + path, data, headers)  # noqa: S310 the user's own URL
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310 see above
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        fail(_refusal(error), exit_code=1)
    except (OSError, ValueError) as error:
        fail(f"no cache controller answers at {url}: {error}; `penstock cache-controller` starts one", exit_code=1)


def _refusal(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"the cache controller wants an API key; set {ENVIRONMENT} as it was set for it"
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the cache controller answers {error.code}"


def _show(answer: Any, table: Table, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
    for warning in answer["warnings"]:
        typer.echo(f"note: {warning}", err=True)
