"""What a client sees of a launched graph; each scenario with simulated engines and with real vLLM."""

import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from components.launch.guard import processes_of
from components.launch.state import GraphState
from components.launch.watch import Phase
from tests.support.launched import Launched

ORIGINAL = Path(__file__).parent / "original_request.json"


def get(graph: Launched, path: str) -> str:
    """Return the body at `path`."""
    with urllib.request.urlopen(graph.url + path, timeout=30) as response:
        assert response.status == 200
        text: str = response.read().decode()
        return text


def test_the_original_documents_curl(graph: Launched) -> None:
    """The request of the original document, sent by curl: one choice of at most 30 tokens."""
    done = subprocess.run(
        ["curl", "-sS", f"{graph.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", f"@{ORIGINAL}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in {"stop", "length"}
    assert 1 <= answer["usage"]["completion_tokens"] <= 30


def test_the_printed_curl_line_works(graph: Launched) -> None:
    """The line shown when the graph is ready is one that works as it stands."""
    line = next(line for line in graph.output.splitlines() if line.strip().startswith("curl "))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]


def test_a_streamed_chat_with_the_openai_client(graph: Launched) -> None:
    """The official client streams a chat: text in pieces, one finish reason, usage last."""
    stream = graph.client().chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Tell me a story."}],
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["length"]
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 40
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 1


def test_models_health_and_metrics(graph: Launched) -> None:
    """What a platform asks for: the model list, health, and metrics of every process on one page."""
    assert [model.id for model in graph.client().models.list()] == ["demo"]
    get(graph, "/health")
    get(graph, "/ready")
    metrics = get(graph, "/metrics")
    for process in ("processor-0", "decode-0", "decode-1"):
        assert f'process="{process}"' in metrics


def test_ps_shows_every_process(graph: Launched) -> None:
    """`penstock ps` knows each process by pid, state and memory, and the workers' load."""
    (view,) = graph.ps()
    assert [row.process for row in view.processes] == ["nats", "processor-0", "decode-0", "decode-1"]
    for row in view.processes:
        assert row.state is Phase.READY
        assert row.pid
        assert row.rss_bytes
        assert (row.kv_usage is not None) == (row.component == "decode")


def test_logs_of_a_process(graph: Launched) -> None:
    """`penstock logs` shows what NATS wrote, and names the processes when asked for one that is not there."""
    shown = graph.run("logs", graph.name, "nats", "-n", "50")
    assert shown.returncode == 0
    assert "Server is ready" in shown.stdout
    refused = graph.run("logs", graph.name, "nobody")
    assert refused.returncode == 2
    assert "decode-0" in refused.stderr


def test_a_worker_killed_under_a_stream(graph: Launched) -> None:
    """Kill -9 of the worker that answers: the stream goes on to its full length, and ps says what happened."""
    restarts = {row.process: row.restarts for row in graph.ps()[0].processes}
    stream = graph.client().chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "A very long story, please."}],
        max_tokens=800,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = iter(stream)
    seen = [next(chunks)]
    busy = busy_worker(graph)
    os.kill(busy[1], signal.SIGKILL)
    seen += chunks
    assert [choice.finish_reason for chunk in seen for choice in chunk.choices if choice.finish_reason] == ["length"]
    assert seen[-1].usage
    assert seen[-1].usage.completion_tokens == 800

    def is_back(state: GraphState) -> bool:
        (process,) = [process for process in state.processes if process.name == busy[0]]
        return process.restarts > restarts[busy[0]] and process.phase is Phase.READY

    graph.until(is_back, 120)
    row = graph.row(busy[0])
    assert row.last_death == "killed by SIGKILL"
    assert row.pid != busy[1]


def test_an_engines_inner_process_killed(graph: Launched) -> None:
    """Kill -9 of a process inside an engine: the worker says so and is restarted with all of it; requests go on."""
    row = graph.row("decode-1")
    assert row.pid
    inner = [process for process in processes_of(graph.state.run) if os.getpgid(process.pid) == row.pid != process.pid]
    if not inner:
        pytest.skip("this engine has no inner processes")
    restarts = row.restarts
    inner[-1].kill()

    def is_back(state: GraphState) -> bool:
        (process,) = [process for process in state.processes if process.name == "decode-1"]
        return process.restarts > restarts and process.phase is Phase.READY

    graph.until(is_back, 120)
    assert "the engine died" in graph.row("decode-1").last_death
    assert not [process for process in inner if process.is_running()]
    answer = graph.client().chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Still there?"}], max_tokens=8
    )
    assert answer.choices[0].finish_reason


def busy_worker(graph: Launched) -> tuple[str, int]:
    """Return name and pid of the worker that runs a request, as soon as its status says so."""

    def busy(state: GraphState) -> list[tuple[str, int]]:
        return [
            (process.name, process.pid)
            for process in state.processes
            if process.pid and process.worker and process.worker.load.running_requests
        ]

    return busy(graph.until(lambda state: bool(busy(state)), 10))[0]
