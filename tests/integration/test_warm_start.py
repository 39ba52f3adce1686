"""Warm start: children are like fresh programs to whoever starts them, and nothing survives what it belongs to."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.engine.warm import WarmChild, WarmPool, WarmStartError

CHILD = "tests.support.warm_child"


@pytest.fixture
def pool() -> Iterator[WarmPool]:
    """A pool without vLLM, which is ready in a moment."""
    pool = WarmPool({**os.environ, "OF_THE_SERVER": "1"}, vllm=False)
    pool.open()
    yield pool
    pool.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where children write."""
    return tmp_path / "child.log"


async def start(pool: WarmPool, log: Path, *argv: str, **environment: str) -> WarmChild:
    """Start a child that does what `argv` says, with the variables it cannot do without, and those given."""
    needed = {"PATH": os.environ["PATH"], **environment}
    return await asyncio.to_thread(pool.start, CHILD, argv, needed, log)


def text(log: Path) -> str:
    """Return what is in `log` by now."""
    return log.read_text() if log.exists() else ""


async def lines(log: Path, count: int) -> list[dict[str, Any]]:
    """Return the first `count` lines of JSON in `log`, once they are there."""
    async with asyncio.timeout(30):
        while text(log).count("\n") < count:
            await asyncio.sleep(0.02)
    return [json.loads(line) for line in text(log).splitlines()[:count]]


async def first_json(log: Path) -> dict[str, Any]:
    """Return the first line of JSON in `log`, among lines of other kinds, once it is there."""
    while True:
        for line in text(log).splitlines():
            if line.startswith("{"):
                told: dict[str, Any] = json.loads(line)
                return told
        await asyncio.sleep(0.1)


async def gone(*pids: int) -> None:
    """Wait until none of the processes exists, for at most five seconds."""
    async with asyncio.timeout(5):
        while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            await asyncio.sleep(0.02)


async def test_child_is_like_a_fresh_program(pool: WarmPool, log: Path) -> None:
    """Arguments, environment, output and process group are the child's own; what was in the log stays."""
    with log.open("w") as file:
        file.write('{"before": 1}\n')
    child = await start(pool, log, "describe", "--flag", ONLY="mine")
    assert await child.wait() == 0
    assert await child.wait() == 0
    before, told = await lines(log, 2)
    assert before == {"before": 1}
    assert told["argv"] == ["describe", "--flag"]
    assert told["environment"] == {"PATH": os.environ["PATH"], "ONLY": "mine"}
    assert told["pid"] == told["group"] == child.pid


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["exit", "0"], 0), (["exit", "3"], 3), (["fail"], 1), (["signal", "SIGTERM"], -15), (["signal", "SIGKILL"], -9)],
)
async def test_exit_codes(pool: WarmPool, log: Path, argv: list[str], code: int) -> None:
    """`wait` returns what `subprocess` would; an exception's traceback is in the log."""
    child = await start(pool, log, *argv)
    assert await child.wait() == code
    assert ("failed as told" in text(log)) == (argv == ["fail"])


async def test_inner_process_is_forked_from_the_server(pool: WarmPool, log: Path) -> None:
    """Inside a child, ``spawn`` means the same server; environment, output and group are those of the child."""
    child = await start(pool, log, "inner")
    inner, told = await lines(log, 2)
    assert inner["parent"] == psutil.Process(child.pid).ppid()
    assert inner["group"] == child.pid
    assert inner["environment"]["SET_BY_CHILD"] == "yes"
    assert "OF_THE_SERVER" not in inner["environment"]
    assert told["code"] == 0


async def test_variables_set_by_imports(log: Path, tmp_path: Path) -> None:
    """What a module sets in the environment when the server imports it reaches children, unless they have their own."""
    (tmp_path / "setter.py").write_text("import os\nos.environ.update(BY_IMPORT='1', OVERRULED='1')\n")
    pool = WarmPool({**os.environ, "PYTHONPATH": str(tmp_path)}, preload=["setter"], vllm=False)
    await (await start(pool, log, "describe", OVERRULED="2")).wait()
    (told,) = await lines(log, 1)
    pool.close()
    assert (told["environment"]["BY_IMPORT"], told["environment"]["OVERRULED"]) == ("1", "2")
    assert "setter" in told["modules"]


async def test_killed_child_takes_its_inner_processes_along(pool: WarmPool, log: Path) -> None:
    """SIGKILL on a child ends what it started."""
    child = await start(pool, log, "inner")
    _, told = await lines(log, 2)
    os.kill(child.pid, signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    await gone(told["inner"])


async def test_stopped_inner_process_goes_too(pool: WarmPool, log: Path) -> None:
    """Even an inner process that cannot run any more."""
    child = await start(pool, log, "inner")
    _, told = await lines(log, 2)
    while os.getpgid(told["inner"]) != child.pid:  # it has just been forked
        await asyncio.sleep(0.01)
    os.kill(told["inner"], signal.SIGSTOP)
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()
    await gone(told["inner"])


async def test_child_that_leaves_inner_processes(pool: WarmPool, log: Path) -> None:
    """Those of a child that ends without waiting for them end, too."""
    child = await start(pool, log, "leave")
    _, told = await lines(log, 2)
    assert await child.wait() == 0
    await gone(told["inner"])


async def test_killed_server_takes_all_along_and_comes_back(pool: WarmPool, log: Path) -> None:
    """When the server is killed, children count as killed, and the next start brings a new server."""
    child = await start(pool, log, "inner")
    _, told = await lines(log, 2)
    os.kill(psutil.Process(child.pid).ppid(), signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    await gone(child.pid, told["inner"])
    again = await start(pool, log, "exit", "5")
    assert await again.wait() == 5


async def test_killed_supervisor_leaves_nothing(log: Path) -> None:
    """When the supervisor is killed, server, child and inner process end."""
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-m", CHILD, "supervise", str(log), stdout=asyncio.subprocess.PIPE
    )
    assert supervisor.stdout is not None
    told = json.loads(await supervisor.stdout.readline())
    _, inner = await lines(log, 2)
    supervisor.kill()
    await supervisor.wait()
    await gone(told["server"], told["child"], inner["inner"])


async def test_close_ends_everything(log: Path) -> None:
    """`close` leaves no process and no file, even while the server is still importing."""
    pool = WarmPool(os.environ, vllm=False)
    child = await start(pool, log, "sleep")
    server = psutil.Process(child.pid).ppid()
    folder = Path(pool._server.address).parent
    pool.close()
    await gone(server, child.pid)
    assert not folder.exists()


async def test_close_while_importing(tmp_path: Path, log: Path) -> None:
    """`close` does not wait for slow imports; a start in waiting fails."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    pool = WarmPool({**os.environ, "PYTHONPATH": str(tmp_path)}, preload=["slow"], vllm=False)
    pool.open()
    waiting = asyncio.create_task(start(pool, log, "sleep"))
    await asyncio.sleep(0.5)
    before = time.monotonic()
    await asyncio.to_thread(pool.close)
    assert time.monotonic() - before < 5
    with pytest.raises(WarmStartError):
        await waiting


async def test_import_that_fails(tmp_path: Path, log: Path) -> None:
    """A server that cannot import says why in its log, and a start fails."""
    pool = WarmPool(os.environ, preload=["no_such_module"], log=tmp_path / "server.log", vllm=False)
    with pytest.raises(WarmStartError):
        await start(pool, log, "sleep")
    pool.close()
    assert "No module named 'no_such_module'" in (tmp_path / "server.log").read_text()


@pytest.mark.vllm
async def test_vllm_in_warm_children(tmp_path: Path) -> None:
    """Two vLLM engines from one server, each on its own core; SIGKILL ends one with all its processes, not the other."""
    pytest.importorskip("vllm")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pool = WarmPool(environment, log=tmp_path / "server.log")
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    cores = sorted(os.sched_getaffinity(0))[:2]
    children = [
        await asyncio.to_thread(
            pool.start, "tests.support.warm_vllm", [], {**environment, "VLLM_CPU_OMP_THREADS_BIND": str(core)}, log
        )
        for core, log in zip(cores, logs, strict=False)
    ]
    async with asyncio.timeout(90):
        told = [await first_json(log) for log in logs[: len(children)]]
    for report, core, child in zip(told, cores, children, strict=False):
        assert report["tokens"] == 16
        assert len(report["processes"]) == 3
        assert [core] in report["cores"]
        assert child.pid in report["processes"]
    os.kill(children[0].pid, signal.SIGKILL)
    assert await children[0].wait() == -signal.SIGKILL
    await gone(*told[0]["processes"])
    assert all(psutil.pid_exists(pid) for report in told[1:] for pid in report["processes"])
    pool.close()
    await gone(*(pid for report in told for pid in report["processes"]))
