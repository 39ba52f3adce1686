"""``penstock jobs …``, and starting a job worker by hand: submits files of jobs, shows how they stand, handles the dead."""

import json
import os
import sys
import time
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote, urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from components.graph.load import GraphError, graph_from_raw, load_graph
from components.graph.schema import Graph
from components.launch.ask import fetch, refusal
from components.launch.state import StateFolder, all_states
from components.launch.target import fail, is_there
from components.launch.views import make_table

jobs_app = typer.Typer(
    help="Submit chat jobs to a queue, and see how they stand.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_TIMEOUT_S = 60.0
_BATCH = 500
_POLL_S = 0.5
_PATIENCE_S = 60.0  # for a queue that restarts meanwhile
_ENDED = frozenset({"completed", "failed"})

Url = Annotated[str | None, typer.Option("--url", help="The queue; default: that of the running graph, or port 8788.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def queue_graph(name: str, host: str, port: int, nats: str, overrides: Sequence[str]) -> Graph:
    """Return a graph that is a job queue and nothing else.

    Raises:
        GraphError: a value makes no sense.
    """
    jobs = {"http_host": host, "http_port": port, "workers": 0}
    raw: dict[str, Any] = {"name": name, "model": "none", "nats": nats, "components": {"jobs": jobs}}
    return graph_from_raw(raw, overrides)


def job_worker(
    queue_url: Annotated[str | None, typer.Option(help="Of the queue, ws://…; or CASOLA_WS_URL.")] = None,
    config_id: Annotated[str | None, typer.Option(help="The jobs it takes; or CASOLA_CONFIG_ID.")] = None,
    model: Annotated[str | None, typer.Option(help="What the engine serves; or VLLM_MODEL.")] = None,
    engine: Annotated[str | None, typer.Option(help="HOST:PORT of its OpenAI endpoint; or VLLM_HOST, VLLM_PORT.")] = None,
    max_jobs: Annotated[int | None, typer.Option(help="Jobs at a time; or CASOLA_MAX_JOBS.")] = None,
    with_engine: Annotated[bool, typer.Option("--with-engine", help="Start vLLM too, and end with it.")] = False,
) -> None:
    """Run a job worker against any OpenAI endpoint. Everything else is set in the environment (docs/jobs.md)."""
    host, port = None, None
    if engine is not None:
        host, _, port = engine.rpartition(":")
    given = {
        "CASOLA_WS_URL": queue_url,
        "CASOLA_CONFIG_ID": config_id,
        "VLLM_MODEL": model,
        "VLLM_HOST": host,
        "VLLM_PORT": port,
        "CASOLA_MAX_JOBS": None if max_jobs is None else str(max_jobs),
    }
    environment = {**os.environ, **{variable: value for variable, value in given.items() if value is not None}}
    module = "components.jobs.entrypoint" if with_engine else "components.jobs.worker"
    os.execve(sys.executable, [sys.executable, "-P", "-m", module], environment)  # noqa: S606 our own module


@jobs_app.command()
def submit(
    file: Annotated[
        Path, typer.Argument(help="A JSON object a line: a payload, or a job with payload, id, config_id. `-`: stdin.")
    ],
    url: Url = None,
    config_id: Annotated[str | None, typer.Option(help="Which workers may have them; default: all.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the finished jobs there, a line each.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until all are finished.")] = True,
) -> None:
    """Submit a file of jobs, show how they proceed, and collect what comes. Ends with 1 when any job failed."""
    queue = _Queue(url)
    jobs = list(_read(file, config_id))
    with _progress() as bar:
        submitting = bar.add_task("submitted", total=len(jobs))
        ids: list[str] = []
        for start in range(0, len(jobs), _BATCH):
            ids += queue.submit(jobs[start : start + _BATCH])
            bar.update(submitting, completed=len(ids))
        if not wait:
            typer.echo("\n".join(ids))
            return
        statuses = _wait(queue, ids, bar)
    if output is not None:
        with output.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(queue.ask(f"/jobs/{quote(job_id)}")) + "\n" for job_id in ids)
    tally = {status: list(statuses.values()).count(status) for status in sorted(set(statuses.values()))}
    typer.echo(", ".join(f"{count} {status}" for status, count in tally.items()) or "no jobs")
    if set(statuses.values()) - {"completed"}:
        sys.exit(1)


@jobs_app.command()
def show(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    url: Url = None,
    wait_s: Annotated[float, typer.Option(help="Wait so long for it to finish.", min=0, max=60)] = 0.0,
) -> None:
    """Show a job with its payload and result, as JSON."""
    typer.echo(json.dumps(_Queue(url).ask(f"/jobs/{quote(job_id, safe='')}?wait_s={wait_s:g}"), indent=2))


@jobs_app.command(name="list")
def list_jobs(
    url: Url = None,
    status: Annotated[str | None, typer.Option(help="pending, running, completed or failed.")] = None,
    count: Annotated[int, typer.Option("-n", help="How many.", min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs: those not finished, oldest first, then the newest finished ones."""
    asked = f"&status={quote(status)}" if status else ""
    jobs = _Queue(url).ask(f"/jobs?limit={count}{asked}")["jobs"]
    table = make_table("job", "config", "status", "attempts", "worker", "created", "progress", "error")
    for job in jobs:
        done = "" if job["progress"] is None else f"{job['progress']:.0%}"
        row = [job["id"], job["config_id"], job["status"], str(job["attempts"]), job["worker_id"] or "", job["created_at"]]
        table.add_row(*row, done, (job["error"] or "")[:60])
    _show(jobs, table, as_json)


@jobs_app.command()
def dead(
    url: Url = None,
    redrive: Annotated[list[str], typer.Option(help="Put this job back into the queue; may be repeated.")] = [],  # noqa: B006
    drop: Annotated[list[str], typer.Option(help="Delete this job's dead letter; may be repeated.")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """List the jobs that were given to too many workers and never finished."""
    queue = _Queue(url)
    for job_id in redrive:
        queue.ask(f"/dead/{quote(job_id, safe='')}/redrive", {})
        typer.echo(f"{job_id} is in the queue again")
    for job_id in drop:
        queue.ask(f"/dead/{quote(job_id, safe='')}", method="DELETE")
        typer.echo(f"{job_id} is dropped")
    if redrive or drop:
        return
    letters = queue.ask("/dead")["dead"]
    table = make_table("job", "attempts", "died", "reason")
    for letter in letters:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter["died_unix_s"]))
        table.add_row(letter["id"], str(letter["attempts"]), at, letter["reason"])
    _show(letters, table, as_json)


class _Queue:
    """The queue's HTTP server; one that restarts is waited for."""

    def __init__(self, url: str | None) -> None:
        self._url = (url or _running_queue() or "http://127.0.0.1:8788").rstrip("/")
        if urlsplit(self._url).scheme not in {"http", "https"}:
            fail(f"--url: must begin with http:// or https://, not {self._url}")

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Return the answer, or end with what is wrong."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return fetch(self._url + path, body, _TIMEOUT_S, method)
            except urllib.error.HTTPError as error:
                if error.code not in {429, 503} or time.monotonic() > deadline:
                    fail(refusal(error, "the queue"), exit_code=1)
            except OSError as error:
                if time.monotonic() > deadline or isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                    fail(f"no queue answers at {self._url}: {getattr(error, 'reason', error)}", exit_code=1)
            time.sleep(_POLL_S)

    def submit(self, jobs: list[dict[str, Any]]) -> list[str]:
        """Submit jobs, all of which have an id, and return the ids."""
        answers = self.ask("/jobs/batch", {"jobs": jobs})["jobs"]
        for job, answer in zip(jobs, answers, strict=True):
            if "error" in answer and answer["error"]["code"] != "conflict":  # sent twice: it is there
                fail(f"job {job['id']}: {answer['error']['message']}", exit_code=1)
        return [job["id"] for job in jobs]


def _wait(queue: _Queue, ids: list[str], bar: Progress) -> dict[str, str]:
    statuses: dict[str, str] = {}
    finishing = bar.add_task("finished", total=len(ids))
    open_ids = list(ids)
    while open_ids:
        for start in range(0, len(open_ids), _BATCH):
            found = queue.ask("/jobs/status", {"ids": open_ids[start : start + _BATCH]})["jobs"]
            statuses |= {job_id: status or "lost" for job_id, status in found.items()}
        open_ids = [job_id for job_id in open_ids if statuses[job_id] not in _ENDED | {"lost"}]
        bar.update(finishing, completed=len(ids) - len(open_ids))
        if open_ids:
            time.sleep(_POLL_S)
    return statuses


def _read(file: Path, config_id: str | None) -> Iterator[dict[str, Any]]:
    """Yield the jobs in a file, each with an id of its own."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: cannot be read: {error}")
    run = os.urandom(6).hex()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            job = json.loads(line)
        except ValueError:
            _fail_line(file, number, "not JSON")
        if not isinstance(job, dict):
            _fail_line(file, number, "must be an object")
        if "messages" in job:
            job = {"payload": job}
        yield {"id": f"{run}-{number}", **({"config_id": config_id} if config_id else {}), **job}


def _fail_line(file: Path, number: int, reason: str) -> NoReturn:
    fail(f"{file}:{number}: {reason}")


def _running_queue() -> str | None:
    """Return the address of the queue of the one running graph that has one."""
    for state in all_states():
        if not is_there(state):
            continue
        try:
            jobs = load_graph(StateFolder(state.graph).graph_file).components.jobs
        except GraphError:
            continue
        if jobs is not None and jobs.replicas:
            return f"http://{jobs.http_host}:{jobs.http_port}"
    return None


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _show(answer: Any, table: Table, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
