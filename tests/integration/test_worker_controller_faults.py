"""What dies, or is taken away, in the middle of a creation. A frozen process holds the load at a known place meanwhile."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.controller import ENGINE, Controller, controller, frozen, gone, until
from tests.support.launched import free_port

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
CONTROLLER_FLAGS = ("--workers", "2")


@contextmanager
def creating(pool: Controller, uuid: str) -> Iterator[Future[httpx.Response]]:
    """Ask for an engine; the answer is still to come."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(pool.call, "POST", "/engines", {"engine_uuid": uuid, **ENGINE})


def is_doing(pool: Controller, uuid: str, what: str) -> bool:
    """Whether an engine has come so far."""
    return bool(pool.status(uuid).get("doing") == what)


def server(pool: Controller) -> int:
    """Return the API server of the engine that is being created."""
    found: int = pool.status("doomed")["pid"]
    return found


def core(pool: Controller) -> int:
    """Return its core."""
    return pool.core_of("doomed")


def rank(pool: Controller) -> int:
    """Return the process of its rank."""
    return pool.pids()[0]


@pytest.mark.parametrize(("victim", "same_rank"), [(core, True), (server, True), (rank, False)])
def test_killed_while_the_model_is_loaded(pool: Controller, victim: Callable[[Controller], int], same_rank: bool) -> None:
    """Core, API server or rank: the request hears of it, nothing of the engine is left, rank and port can be had again."""
    before = pool.pids()
    other_url = ""
    with creating(pool, "doomed") as answer, ExitStack() as still:
        still.enter_context(frozen(before[0]))
        until(lambda: is_doing(pool, "doomed", "loading the model"))
        port = pool.status("doomed")["port"]
        family = [core(pool), server(pool)]
        os.kill(victim(pool), signal.SIGKILL)
        gone(family, 30)
        still.close()
        refused = answer.result(60)
        assert refused.status_code == 503, refused.text
        assert "doomed" in refused.json()["error"]["message"]
    assert pool.status("doomed")["state"] == "failed"
    assert pool.status("doomed")["error"]
    pool.wait_free()
    assert (pool.pids()[0] == before[0]) is same_rank
    assert pool.pids()[1] == before[1]
    again = pool.create("doomed")
    assert (again["assigned_ranks"], again["port"]) == ([0], port)
    other_url = again["api_url"]
    assert pool.complete(other_url) != ""


def test_a_rank_that_never_answers_again_is_replaced(tmp_path: Path) -> None:
    """It stands still while a model is loaded; the engine is deleted, and soon another process has the rank's number."""
    with controller(tmp_path, "--reset-timeout-s", "2") as made:
        before = made.pids()
        with creating(made, "doomed") as answer, frozen(before[0]):
            until(lambda: is_doing(made, "doomed", "loading the model"))
            made.delete("doomed")
            assert answer.result(60).status_code == 409
            until(lambda: made.pids() not in (before, [None]), 60)
        made.wait_free()
        assert "did not reset" in made.workers()[0]["last_death"]
        assert made.complete(made.create("next")["api_url"]) != ""


@pytest.mark.parametrize("still", ["rank", "warm server"])
def test_controller_killed_while_it_creates(tmp_path: Path, still: str) -> None:
    """SIGKILL while a model is loaded, and while an engine's processes are forked: nothing lives on, its ports are free."""
    with controller(tmp_path) as made:
        held = made.pids()[0] if still == "rank" else made.warm_server().pid
        doing = "loading the model" if still == "rank" else ""
        asking = threading.Thread(target=ask, args=[made])
        with frozen(held):
            asking.start()
            until(lambda: made.status("doomed").get("state") == "loading" and is_doing(made, "doomed", doing))
            family = [process.pid for process in made.family()]
            os.kill(made.process.pid, signal.SIGKILL)
            made.process.wait()
            gone(family, 30)
        asking.join(30)
        for port in (made.first_engine_port, int(made.url.rpartition(":")[2])):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))


def ask(made: Controller) -> None:
    """Ask for an engine that will never be."""
    with pytest.raises(httpx.HTTPError):
        made.call("POST", "/engines", {"engine_uuid": "doomed", **ENGINE})


def test_warm_server_killed_while_a_model_is_loaded(tmp_path: Path) -> None:
    """The request hears of it; a new warm server brings new ranks."""
    with controller(tmp_path) as made:
        before = made.pids()
        with creating(made, "doomed") as answer, frozen(before[0]):
            until(lambda: is_doing(made, "doomed", "loading the model"))
            made.warm_server().kill()
            assert answer.result(60).status_code == 503
        until(lambda: made.call("GET", "/health").status_code == 200 and made.pids() != before, 120)
        assert made.complete(made.create("doomed")["api_url"]) != ""


@contextmanager
def port_taken_behind_its_back(made: Controller, port: int) -> Iterator[Future[httpx.Response]]:
    """Create an engine whose port was free when it was chosen, and is somebody else's when the engine wants it."""
    with creating(made, "late") as answer, ExitStack() as holding:
        with frozen(made.warm_server().pid):
            until(lambda: made.status("late").get("port") == port)
            holder = holding.enter_context(socket.socket())
            holder.bind(("127.0.0.1", port))
            holder.listen()
        yield answer


def test_a_port_taken_between_choice_and_use(pool: Controller) -> None:
    """The engine gets another one, and the first creation after it is the holder's neighbour no more."""
    with port_taken_behind_its_back(pool, pool.first_engine_port) as answer:
        made = answer.result(60)
        assert made.status_code == 200, made.text
        assert made.json()["port"] > pool.first_engine_port
        assert pool.complete(made.json()["api_url"]) != ""
    pool.delete("late")
    assert pool.create("next")["port"] == pool.first_engine_port


def test_the_only_port_taken_between_choice_and_use(tmp_path: Path) -> None:
    """Without another one the creation fails and says why; the rank is free again, and so is the port once it is free."""
    port = str(free_port())
    with controller(tmp_path, "--first-engine-port", port, "--last-engine-port", port) as made:
        before = made.pids()
        with port_taken_behind_its_back(made, int(port)) as answer:
            refused = answer.result(60)
            assert refused.status_code == 503, refused.text
            assert "port" in refused.json()["error"]["message"]
            made.wait_free()
        assert made.complete(made.create("next")["api_url"]) != ""
        assert made.pids() == before


def test_a_message_that_is_too_long_for_the_ranks(tmp_path: Path) -> None:
    """A limit that not even a model's configuration fits: every creation fails and says so, the rank stays as it is."""
    with controller(tmp_path, "--max-ipc-bytes", "4096") as made:
        before = made.pids()
        for _ in range(2):
            refused = made.call("POST", "/engines", {"engine_uuid": "wordy", **ENGINE})
            assert refused.status_code >= 400, refused.text
            assert "max_ipc_bytes" in refused.json()["error"]["message"]
            made.wait_free()
        assert made.pids() == before
