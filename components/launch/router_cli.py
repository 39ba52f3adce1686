"""``penstock router …``: asks a graph's router over HTTP, and shows the answers as tables."""

import json
import sys
import urllib.error
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from components.graph.load import GraphError, load_graph
from components.launch.ask import fetch, refusal
from components.launch.state import GraphState, StateFolder
from components.launch.target import Name, fail, one_state
from components.launch.views import make_table

router_app = typer.Typer(
    help="Ask the router: what it knows, what it would choose, what it chose.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_TIMEOUT_S = 10.0
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@router_app.command()
def workers(name: Name = None, as_json: AsJson = False) -> None:
    """List the workers: how far their KV events are trusted, what they hold, how busy they are."""
    answer = _ask(one_state(name), "/workers")
    columns = ("worker", "role", "state", "trust", "blocks", "KV", "requests", "queued", "active", "hit rate", "µs/token")
    table = make_table(*columns, "store", "why")
    for each in answer["workers"]:
        load = each["load"]
        table.add_row(
            each["name"],
            each["role"],
            each["state"],
            each["trust"],
            str(each["blocks"]),
            f"{each['kv_usage']:.0%}",
            str(load["requests"]),
            str(load["queued_tokens"]),
            str(load["active_tokens"]),
            "-" if each["hit_rate"] is None else f"{each['hit_rate']:.0%}",
            f"{each['prefill_s_per_token'] * 1e6:.1f}",
            each["store"],
            each["why"],
        )
    _show(answer, table, as_json)


@router_app.command()
def explain(
    text: Annotated[str, typer.Argument(help="The prompt; `-` reads it from standard input.")],
    name: Name = None,
    chat: Annotated[bool, typer.Option("--chat", help="It is a user's message, not a plain prompt.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show where a prompt would go now, and what every worker would cost; changes nothing."""
    prompt = sys.stdin.read() if text == "-" else text
    body = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    answer = _ask(one_state(name), "/explain", body)
    counts = {
        "cached": "overlap_blocks",
        "expected": "expected_blocks",
        "fetch blocks": "fetch_blocks",
        "uncached": "uncached_tokens",
    }
    terms = ("prefill", "fetch", "queue", "decode", "memory", "cost")
    title = f"{answer['policy']}: {answer['prompt_tokens']} tokens, {answer['prompt_blocks']} blocks; milliseconds"
    table = make_table("worker", "trust", "store", *counts, *terms, title=title)
    chosen = answer["choice"]["worker"] if answer["choice"] else None
    for each in answer["candidates"]:
        costs = [f"{each[f'{term}_s'] * 1000:.2f}" for term in terms]
        blocks = [str(each[field]) for field in counts.values()]
        mark = "→ " if each["worker"] == chosen else "  "
        table.add_row(mark + each["worker"], each["trust"], each["store"], *blocks, *costs)
    _show(answer, table, as_json)


@router_app.command()
def decisions(
    name: Name = None,
    count: Annotated[int, typer.Option("-n", help="How many.", min=1, max=200)] = 20,
    as_json: AsJson = False,
) -> None:
    """List the last decisions of all routers, newest first: what was predicted, and what came of it."""
    answers = _ask_all(one_state(name), f"/decisions?limit={count}")
    newest = sorted((each for answer in answers for each in answer["decisions"]), key=lambda each: -each["unix_s"])
    answer = {"policy": answers[0]["policy"], "decisions": newest[:count]}
    columns = ("request", "worker", "tokens", "predicted", "reused", "cost ms", "TTFT ms", "took µs", "finished")
    table = make_table(*columns, title=f"policy {answer['policy']}; blocks predicted, tokens reused")
    for each in answer["decisions"]:
        table.add_row(
            each["request_id"],
            each["worker"],
            str(each["prompt_tokens"]),
            str(each["overlap_blocks"]),
            "-" if each["cached_tokens"] is None else str(each["cached_tokens"]),
            f"{each['cost_ms']:.2f}",
            "-" if each["ttft_ms"] is None else f"{each['ttft_ms']:.1f}",
            f"{each['decided_us']:.0f}",
            "yes" if each["finished"] else "no",
        )
    _show(answer, table, as_json)


@router_app.command()
def stats(name: Name = None, as_json: AsJson = False) -> None:
    """Show how big the index is, and what came over NATS."""
    answer = _ask(one_state(name), "/index/stats")
    table = make_table("tier", "workers", "blocks", "pairs", "holes", "refused", "memory")
    for tier in ("device", "host", "shared"):
        each = answer[tier]
        numbers = [str(each[field]) for field in ("workers", "blocks", "pairs", "holes", "refused_blocks")]
        table.add_row(tier, *numbers, f"{each['size_bytes'] / 2**20:.1f} MB")
    _show(answer, table, as_json)
    if not as_json:
        typer.echo(", ".join(f"{field.replace('_', ' ')} {count}" for field, count in answer["events"].items()))


def _ask(state: GraphState, path: str, body: Any = None) -> Any:
    """Return the answer of the first router that answers, or end with what is wrong."""
    return _ask_all(state, path, body, most=1)[0]


def _ask_all(state: GraphState, path: str, body: Any = None, most: int = 64) -> list[Any]:
    """Return the answers of at most `most` routers, at least one, or end with what is wrong."""
    answers: list[Any] = []
    reason = ""
    for url in router_urls(state.graph):
        try:
            answers.append(fetch(url + path, body, _TIMEOUT_S))
        except urllib.error.HTTPError as error:
            fail(refusal(error, "the router"), exit_code=1)
        except OSError as error:
            reason = f"no router answers: {url}: {getattr(error, 'reason', error)}"
        if len(answers) == most:
            break
    if not answers:
        fail(reason or why_none(state.graph), exit_code=1)
    return answers


def why_none(graph_name: str) -> str:
    """Return why a launched graph has no router here, and what to do."""
    try:
        settings = load_graph(StateFolder(graph_name).graph_file).components.router
    except GraphError as error:
        return f"the settings of graph {graph_name} cannot be read: {error}"
    if settings is None:
        return f"graph {graph_name} has no router; with `router: {{}}` among its components it gets one"
    count = "processor" if settings.embedded else "router"
    return (
        f"this machine's part of graph {graph_name} runs no router (components.{count}.replicas is 0): "
        "say this on a machine whose part does"
    )


def router_urls(graph_name: str) -> list[str]:
    """Return where the routers of a launched graph answer queries."""
    try:
        graph = load_graph(StateFolder(graph_name).graph_file)
    except GraphError:
        return []
    settings = graph.components.router
    ports = range(settings.http_port, settings.http_port + graph.routers) if settings else []
    return [f"http://{settings.http_host}:{port}" for port in ports] if settings else []


def trusts(graph_name: str) -> dict[str, str]:
    """Return how far a router of a launched graph trusts each worker's KV events; empty when none answers at once."""
    for url in router_urls(graph_name):
        try:
            return {each["name"]: each["trust"] for each in fetch(f"{url}/workers", None, 0.5)["workers"]}
        except OSError:
            continue
    return {}


def _show(answer: Any, table: Table, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
