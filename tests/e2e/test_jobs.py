"""Chat and jobs on one graph: jobs go in by the command line and come out done, by simulated engines and by real vLLM."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launched import ROOT, Commands, Launched, free_port

JOBS = [
    pytest.param(("jobs_sim",), id="sim"),
    pytest.param(
        ("agg", "jobs.workers=1", "jobs.worker_capacity=2", "decode.replicas=1"),
        id="vllm",
        marks=[pytest.mark.vllm, pytest.mark.timeout(300)],
    ),
]


@pytest.fixture(params=JOBS)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Launched, str]]:
    """A graph with jobs, and the address of its queue."""
    name, *settings = request.param
    port = free_port()
    launched = Launched.up(tmp_path, f"graphs/{name}.yaml", f"jobs.http_port={port}", *settings)
    try:
        yield launched.wait_ready(240), f"http://127.0.0.1:{port}"
    finally:
        launched.close()
    assert launched.left_over(wait_s=0) == []


def test_a_file_of_jobs(graph: tuple[Launched, str], tmp_path: Path) -> None:
    """Submitted, waited for, collected; one that is no good fails alone; chat is answered meanwhile."""
    launched, url = graph
    assert f"takes jobs at {url}" in launched.output
    lines = [{"messages": [{"role": "user", "content": f"Hello {number}"}], "max_tokens": 4} for number in range(8)]
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("\n".join(map(json.dumps, lines)))
    results = tmp_path / "results.jsonl"
    done = launched.run("jobs", "submit", str(jobs), "-o", str(results))
    assert done.returncode == 0, done.stderr
    assert "8 completed" in done.stdout
    finished = [json.loads(line) for line in results.read_text().splitlines()]
    assert [job["payload"] for job in finished] == lines
    for job in finished:
        completion = job["result"]["completion"]
        assert completion["usage"]["completion_tokens"] == 4
        assert completion["model"] == "demo"
        assert completion["choices"][0]["finish_reason"] == "length"
    answer = launched.client().chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Hello!"}], max_tokens=4
    )
    assert answer.usage is not None
    jobs.write_text(json.dumps({"messages": []}))
    done = launched.run("jobs", "submit", str(jobs), "--url", url)
    assert (done.returncode, "1 failed" in done.stdout) == (1, True)
    listed = json.loads(launched.run("jobs", "list", "--status", "failed", "--json").stdout)
    assert [job["error"] for job in listed] == ["messages: must be a list of at least one message"]
    shown = json.loads(launched.run("jobs", "show", finished[0]["id"]).stdout)
    assert shown == finished[0]
    assert json.loads(launched.run("jobs", "dead", "--json").stdout) == []
    assert launched.row("job-worker-0").state == "ready"


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    """Of a file, of an address, of a setting."""
    commands = Commands(tmp_path)
    file = tmp_path / "bad.jsonl"
    file.write_text('{"messages": []}\nno JSON\n')
    for words, reason in (
        (("jobs", "submit", str(tmp_path / "none")), "cannot be read"),
        (("jobs", "submit", str(file)), "bad.jsonl:2: not JSON"),
        (("jobs", "list", "--url", "http://127.0.0.1:1"), "no queue answers at http://127.0.0.1:1"),
        (("queue", "--port", "0"), "components.jobs.http_port: must be 1 to 65535"),
        (("queue", "--host", "0.0.0.0"), "components.jobs.http_host: 0.0.0.0 is open to other machines"),
        (("job-worker",), "CASOLA_WS_URL, CASOLA_CONFIG_ID, VLLM_MODEL: must be set"),
    ):
        done = commands.run(*words)
        assert done.returncode == 2 or reason.startswith("no queue")
        assert reason in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_queue_and_a_worker_by_themselves(tmp_path: Path) -> None:
    """`penstock queue` keeps its jobs from one run to the next; `penstock job-worker` does them on any endpoint."""
    port, engine_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(
        json.dumps({"id": "early", "payload": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}})
    )
    queue = Launched(tmp_path, "queue", port, "queue", "--port", str(port)).wait_ready(60)
    assert f"takes jobs at {url}" in queue.output
    assert queue.run("jobs", "submit", "--no-wait", str(jobs)).stdout == "early\n"
    assert queue.interrupt() == 0
    queue = Launched(tmp_path, "queue", port, "queue", "--port", str(port)).wait_ready(60)
    log = (tmp_path / "worker.log").open("wb")
    engine = subprocess.Popen([sys.executable, "-m", "tests.support.engine_program", "--port", str(engine_port)], cwd=ROOT)
    worker = subprocess.Popen(
        queue.argv(
            *("job-worker", "--queue-url", f"ws://127.0.0.1:{port}", "--config-id", "default", "--model", "served"),
            *("--engine", f"127.0.0.1:{engine_port}"),
        ),
        cwd=ROOT,
        env={**queue.environment, "CASOLA_STATE_DIR": str(tmp_path / "worker")},
        stdout=log,
        stderr=log,
    )
    try:
        job = json.loads(queue.run("jobs", "show", "early", "--wait-s", "30").stdout)
        assert (job["status"], job["attempts"]) == ("completed", 1)
        worker.terminate()
        assert worker.wait(20) == 0
    finally:
        for process in (worker, engine):
            process.kill()
            process.wait()
        log.close()
        queue.close()
