"""The command line: background, several graphs side by side, and bad input as one line, with nothing left running."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.support.launched import ROOT, Commands, Launched, free_port

SIM = "graphs/agg_sim.yaml"


def refused(done: subprocess.CompletedProcess[str], exit_code: int = 2) -> str:
    """Return the one line on standard error that explains the refusal."""
    assert done.returncode == exit_code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_several_graphs_in_the_background(commands: Commands) -> None:
    """Two graphs side by side: both answer, a third of the same name is refused, each is stopped by its name."""
    ports = {"one": free_port(), "two": free_port()}
    try:
        for name, port in ports.items():
            up = commands.run("up", SIM, "-d", "--set", f"name={name}", "--set", f"http.port={port}")
            assert up.returncode == 0, up.stderr
            assert f"http://127.0.0.1:{port}/v1" in up.stdout
        views = commands.ps()
        assert [view.graph for view in views] == ["one", "two"]
        again = commands.run("up", SIM, "-d", "--set", "name=one", "--set", f"http.port={free_port()}")
        assert "graph one is already running" in refused(again, 1)
        assert "several graphs are running, name one of them: one, two" in refused(commands.run("down"), 1)
        assert commands.run("down", "one").returncode == 0
        assert [view.graph for view in commands.ps()] == ["two"]
    finally:
        for name in ports:
            commands.run("down", name)
    assert commands.ps() == []
    assert commands.run("ps").stdout.strip() == "no graph is running"


def test_a_taken_port(commands: Commands) -> None:
    """The holder is named by pid and command."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        line = refused(commands.run("up", SIM, "--set", f"http.port={port}"))
    assert line.startswith(f"http.port: {port} is taken by pid ")
    assert "pytest" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "is not YAML"),
        ("[]", "a graph is a map of settings"),
        ("model: demo\ncomponents: {decode: {replicas: two}}", "components.decode.replicas: expected `int`"),
        ("model: demo\ncomponents: {decode: {replcias: 2}}", "components.decode.replcias: unknown setting; did you mean"),
        (
            "model: demo\ncomponents: {decode: {engine: {max_modl_len: 9}}}",
            "engine.max_modl_len: vLLM has",
        ),
        ("model: /no/such/model\ncomponents: {decode: {engine: {kind: sim}}}", "model: there is no folder /no/such/model"),
    ],
)
def test_a_mistake_in_the_graph(commands: Commands, tmp_path: Path, text: str, words: str) -> None:
    """One line with the path of the setting, exit code 2, and nothing was started."""
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    for words_of_command in (["up", str(file)], ["up", "-d", str(file)], ["check", str(file)]):
        assert words in refused(commands.run(*words_of_command, "--set", f"http.port={free_port()}"))
    assert commands.ps() == []


def test_a_launch_that_fails_in_the_background(commands: Commands) -> None:
    """A processor that cannot start: `up -d` returns its reason and a non-zero code, and leaves nothing."""
    files = f"{{port: {free_port()}, tls_cert_file: no-such.pem, tls_key_file: no-such.pem}}"
    up = commands.run("up", SIM, "-d", "--set", f"http={files}")
    assert up.returncode == 1
    assert "http.tls_cert_file: cannot be used" in up.stderr.splitlines()[-1]
    assert commands.ps() == []


def test_check_prints_the_plan_and_starts_nothing(commands: Commands) -> None:
    """`check` and `up --dry-run` show the same processes with ports and devices."""
    port = free_port()
    plans = [commands.run(*words, "--set", f"http.port={port}") for words in (["check", SIM], ["up", SIM, "--dry-run"])]
    assert plans[0].returncode == plans[1].returncode == 0
    assert plans[0].stdout == plans[1].stdout
    for words in ("processor-0", "decode-1", f"127.0.0.1:{port}", "CPU"):
        assert words in plans[0].stdout
    assert commands.ps() == []


def test_the_original_command_line(commands: Commands) -> None:
    """`dynamo-llm` shows the plan of its flags, and refuses those without effect, in one line."""
    port = str(free_port())

    def dynamo_llm(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", "from components.launch.dynamo_llm import main; main()", *words]
        return subprocess.run(
            argv, cwd=ROOT, env=commands.environment, capture_output=True, text=True, timeout=60, check=False
        )

    plan = dynamo_llm("--model", "demo", "--decode-workers", "2", "--http-port", port, "--max-num-seqs", "8", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "decode-1" in plan.stdout
    routed = dynamo_llm("--model", "demo", "--router", "kv", "--http-port", port, "--dry-run")
    assert "router-0" in routed.stdout or "router.http_port" in routed.stderr, routed.stderr
    disagg = dynamo_llm("--model", "demo", "--prefill-workers", "1", "--http-port", port, "--dry-run")
    assert "prefill-0" in disagg.stdout or "lmcache." in disagg.stderr, disagg.stderr
    assert "--prefill-workers" in refused(dynamo_llm("--model", "demo", "--conditional-disagg"))
    assert "did you mean `max_num_seqs`" in refused(dynamo_llm("--model", "demo", "--http-port", port, "--max-num-sqs", "8"))


def test_the_api_key_is_in_no_file_and_no_argument(tmp_path: Path) -> None:
    """`serve --api-key`: requests need it; no file and no command line holds it, and only who checks it is given it."""
    port, key = free_port(), "sk-secret-of-this-test"
    words = ["serve", "--engine", "sim", "--router", "kv", "--http-port", str(port), "--api-key", key]
    graph = Launched(tmp_path, f"serve-{port}", port, *words)
    try:
        graph.wait_ready(60)
        assert status_of(f"{graph.url}/v1/models") == 401
        assert status_of(f"{graph.url}/v1/models", key) == 200
        assert status_of(f"http://127.0.0.1:{port + 1}/workers") == 401
        assert status_of(f"http://127.0.0.1:{port + 1}/workers", key) == 200
        supervisor = psutil.Process(graph.state.supervisor_pid)
        everybody = [supervisor, *supervisor.children(recursive=True)]
        assert len(everybody) >= 6  # it, its guard, NATS, a processor, a router and a worker
        assert not [process for process in everybody if key in " ".join(process.cmdline())]
        with_key = {process.pid for process in everybody if key in process.environ().values()}
        checking = {row.pid for row in graph.state.processes if row.component in {"processor", "router"}}
        assert with_key - {supervisor.pid} == checking
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert not [file for file in files if key.encode() in file.read_bytes()]
    finally:
        graph.close()


def status_of(url: str, key: str | None = None) -> int:
    """Return the HTTP status of a GET."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
