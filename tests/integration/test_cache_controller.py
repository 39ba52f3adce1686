"""The cache controller with LMCache's own worker, reporting, syncing and hashing code at the other end of its sockets."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zmq
import zmq.asyncio

from components.cache_controller.process import StartError
from tests.support.cache_controller import EXAMPLE, Api, controller, until, worker_settings
from tests.support.lmcache_workers import LOCATION, WorkerProcess, worker_process

PROMPT = list(range(100, 1100))  # three full chunks and a tail of 232 tokens
DOCUMENT = """
chunk_size: 256
local_cpu: True
max_local_cpu_size: 5

# cache controller configurations
enable_controller: True
lmcache_instance_id: "lmcache_default_instance"
controller_pull_url: "localhost:9001"
lmcache_worker_ports: 8001

# Peer identifiers
p2p_host: "localhost"
p2p_init_ports: 8200
"""
NOWHERE = b'{"type": "RegisterMsg", "instance_id": "x", "worker_id": 0, "ip": "\\u0000", "port": 1, "peer_init_url": null}'
FIELDS = {
    "instance_id": str,
    "worker_id": int,
    "ip": str,
    "port": int,
    "peer_init_url": type(None),
    "registration_time": float,
    "last_heartbeat_time": float,
}


async def begin(
    workers: WorkerProcess, api: Api, instance: str, rank: int = 0, ranks: int = 1, **changes: Any
) -> dict[str, Any]:
    """Start a worker, wait until it is listed, and return how."""
    settings = worker_settings(api.settings, instance, **changes)
    settings["lmcache_worker_ports"] = settings["lmcache_worker_ports"] * ranks
    await workers.do("start", rank=rank, ranks=ranks, **settings)  # imports vLLM, unless told not to
    await until(lambda: api.workers(instance, [rank]))
    return (await api.workers(instance, [rank]))[0]


async def held(api: Api, tokens: list[int] = PROMPT) -> dict[str, int]:
    """Return how many of `tokens` each instance holds."""
    answer = await api.post("/full_lookup", tokens=tokens)
    return {match["instance_id"]: match["matched_tokens"] for match in answer["matches"]}


async def trust(api: Api, instance: str) -> set[str]:
    """Return how exactly an instance's workers are known."""
    return {each["trust"] for each in (await api.get(f"/controller/workers?instance_id={instance}"))["workers"]}


async def test_workers_are_listed_as_the_document_says() -> None:
    """Both keys, exactly the seven fields, right types, epoch seconds; several ranks and instances."""
    async with controller() as api, worker_process() as workers:
        before = time.time()
        info = await begin(workers, api, "a")
        assert {name: type(value) for name, value in info.items()} == FIELDS
        assert before <= info["registration_time"] <= info["last_heartbeat_time"] <= time.time()
        for rank in (0, 1):
            await begin(workers, api, "b", rank, 2)
        assert [(each["instance_id"], each["worker_id"]) for each in await api.workers()] == [("a", 0), ("b", 0), ("b", 1)]
        assert [each["worker_id"] for each in await api.workers("b", [])] == [0, 1]
        assert [each["worker_id"] for each in await api.workers("b", [1, 7])] == [1]
        assert [each["instance_id"] for each in await api.workers("all", [1])] == ["b"]
        assert await api.workers("nobody") == []
        assert (await api.post("/query_instance", event_id="e", ip=info["ip"])) == {"event_id": "e", "res": "b"}
        await api.post("/query_instance", 404, event_id="e2", ip="203.0.113.9")


async def test_the_shipped_yaml_is_what_lmcache_takes() -> None:
    """LMCache loads the file, and its derived addresses are those that the default ports come to."""
    async with worker_process() as workers:
        loaded = await workers.do("load", file=str(EXAMPLE))
    assert loaded["controller_pull_url"] == "localhost:9001"
    assert loaded["controller_reply_url"] == "localhost:9002"
    assert loaded["lmcache_worker_ports"] == [8001]
    assert loaded["lmcache_instance_id"] == "lmcache_default_instance"
    assert loaded["enable_controller"]
    assert loaded["chunk_size"] == 256


async def test_the_documents_own_yaml_works_with_what_is_printed_for_it(tmp_path: Path) -> None:
    """LMCache refuses it as it stands, for want of `controller_reply_url`."""
    file = tmp_path / "example.yaml"
    file.write_text(DOCUMENT)
    command = [sys.executable, "-m", "components.launch", "cache", "environment", "--monitor-port", "9001"]
    printed = await asyncio.to_thread(subprocess.check_output, command, text=True)
    variables = dict(line.split("=", 1) for line in printed.split())
    assert variables["PYTHONHASHSEED"] == "0"
    async with worker_process(variables=variables) as workers:
        loaded = await workers.do("load", file=str(file))
    assert loaded["controller_reply_url"] == "localhost:9002"
    assert loaded["lmcache_worker_ports"] == [8001]
    assert loaded["lmcache_worker_heartbeat_time"] == 1


async def test_a_worker_comes_beats_and_leaves() -> None:
    """Its first sign counts at once, so do its beats and its leaving."""
    async with controller() as api, worker_process() as workers:
        first = await begin(workers, api, "a")

        async def beaten() -> bool:
            return bool((await api.workers("a"))[0]["last_heartbeat_time"] > first["last_heartbeat_time"])

        await until(beaten)
        assert (await api.workers("a"))[0]["registration_time"] == first["registration_time"]
        await workers.do("leave", instance="a")

        async def left() -> bool:
            # Its beats go on, as it has not ended; the next one registers it anew.
            listed = await api.workers("a")
            return not listed or bool(listed[0]["registration_time"] != first["registration_time"])

        await until(left)


async def test_a_worker_of_the_same_name_replaces_the_former_one() -> None:
    """What the former one held is forgotten, and its leaving takes nothing from the new one."""
    async with controller() as api, worker_process() as workers:
        async with worker_process() as former:
            first = await begin(former, api, "a", lmcache_worker_heartbeat_time=None)
            await former.do("store", instance="a", tokens=PROMPT)
            await until(lambda: held(api))
            await workers.do("start", **worker_settings(api.settings, "a"))

            async def moved() -> bool:
                return bool((await api.workers("a"))[0]["port"] != first["port"])

            await until(moved)
            assert await held(api) == {}
            await former.do("leave", instance="a")
        await workers.do("store", instance="a", tokens=PROMPT)
        await until(lambda: held(api))
        assert len(await api.workers("a")) == 1
        assert await api.metric("replaced_total") == 1


async def test_a_silent_worker_is_forgotten_and_comes_back_with_all_it_holds() -> None:
    """Frozen past its timeout it is gone; its late heartbeat registers it again, and a full sync tells what it holds."""
    async with controller(worker_timeout_s=2.0) as api, worker_process() as workers:
        await begin(workers, api, "a")
        await workers.do("store", instance="a", tokens=PROMPT)
        await until(lambda: held(api))
        workers.freeze()

        async def gone() -> bool:
            return not await api.workers("a")

        silent_s = await until(gone)
        assert silent_s > 1.0
        assert await held(api) == {}
        workers.thaw()
        await until(lambda: held(api))
        assert await held(api) == {"a": 768}
        assert await trust(api, "a") == {"exact"}
        assert await api.metric("timeouts_total") == 1

        async def stores_again() -> bool:
            return bool(await workers.do("frozen", instance="a") == [True, False])

        await until(stores_again)


async def test_a_worker_that_never_beats_stays_while_it_answers() -> None:
    """LMCache leaves heartbeats off by default: such a worker is asked, and forgotten when it is dead."""
    async with controller(worker_timeout_s=1.0) as api, worker_process() as workers:
        first = await begin(workers, api, "a", lmcache_worker_heartbeat_time=None)

        async def older_than_the_timeout() -> bool:
            return bool((await api.workers("a"))[0]["last_heartbeat_time"] > first["registration_time"] + 2)

        await until(older_than_the_timeout)
        await workers.kill()

        async def gone() -> bool:
            return not await api.workers("a")

        await until(gone)


async def test_lookup_finds_the_longest_prefix_and_shrinks() -> None:
    """Full chunks and tails; the longest holder; less after eviction, nothing after clear."""
    async with controller() as api, worker_process() as workers:
        await begin(workers, api, "a")
        await begin(workers, api, "tails", save_unfull_chunk=True)
        await workers.do("store", instance="a", tokens=PROMPT[:520])
        await workers.do("store", instance="tails", tokens=PROMPT)

        async def both() -> bool:
            return await held(api) == {"tails": 1000, "a": 512}

        await until(both)
        answer = await api.post("/lookup", tokens=PROMPT)
        assert answer == {"event_id": answer["event_id"], "layout_info": {"tails": [LOCATION, 1000]}}
        matches = (await api.post("/full_lookup", tokens=[*PROMPT, 5]))["matches"]
        assert [(each["instance_id"], each["matched_tokens"]) for each in matches] == [("tails", 768), ("a", 512)]
        assert await held(api, [7, *PROMPT]) == {}
        assert await held(api, []) == {}

        await workers.do("evict", instance="tails", tokens=PROMPT[:256])

        async def shrunk() -> bool:
            return await held(api) == {"a": 512}

        await until(shrunk)
        assert (await api.post("/pin", instance_id="a", location=LOCATION, tokens=PROMPT[:256]))["num_tokens"] == 256
        assert (await api.post("/clear", instance_id="a", location=LOCATION))["num_tokens"] == 256

        async def only_the_pinned() -> bool:
            return await held(api) == {"a": 256}

        await until(only_the_pinned)
        stats = await api.get("/controller/key-stats")
        assert stats["instances"]["a"] == {LOCATION: 1}
        assert stats["total_worker_count"] == stats["total_instance_count"] == 2


async def test_a_prefix_counts_as_far_as_all_ranks_hold_it() -> None:
    """Tokens of which one rank holds nothing are of no use."""
    async with controller() as api, worker_process() as workers:
        for rank in (0, 1):
            await begin(workers, api, "a", rank, 2)
        await workers.do("store", instance="a", tokens=PROMPT, rank=0)
        await workers.do("store", instance="a", tokens=PROMPT[:300], rank=1)

        async def found() -> bool:
            return await held(api) == {"a": 256}

        await until(found)
        assert (await api.post("/clear", instance_id="a", location=LOCATION))["num_tokens"] == 256


async def test_instances_that_hash_otherwise_are_found_or_reported() -> None:
    """A differing chunk size is found out; a seed nobody guesses is reported with the answer; never silently nothing."""
    async with (
        controller(hash_seed="0") as api,
        worker_process("0", vllm=True) as usual,
        worker_process("0", vllm=True) as other,
        worker_process("424242", vllm=True) as strange,
    ):
        # One process hashes by one algorithm: where LMCache's chains begin is a global of it.
        await asyncio.gather(
            begin(usual, api, "usual"),
            begin(other, api, "cbor", pre_caching_hash_algorithm="sha256_cbor"),
            begin(strange, api, "strange"),
        )
        await begin(usual, api, "small", chunk_size=64)
        for workers, instance in ((usual, "usual"), (usual, "small"), (other, "cbor"), (strange, "strange")):
            await workers.do("store", instance=instance, tokens=PROMPT)

        async def found() -> bool:
            return await held(api) == {"usual": 768, "small": 960, "cbor": 768}

        await until(found)
        answer = await api.post("/lookup", tokens=PROMPT)
        assert answer["layout_info"] == {"small": [LOCATION, 960]}
        assert [warning.split(":")[0] for warning in answer["warnings"]] == ["strange"]
        assert "PYTHONHASHSEED" in answer["warnings"][0]
        hashing = {each["instance_id"]: each["hashing"] for each in (await api.get("/controller/workers"))["workers"]}
        assert hashing["small"] == "builtin, PYTHONHASHSEED=0, chunks of 64 tokens"
        assert hashing["cbor"] == "sha256_cbor, PYTHONHASHSEED=0, chunks of 256 tokens"
        assert hashing["strange"] is None
        assert await api.metric("differing_instances") == 2


async def test_commands_reach_workers_and_say_what_failed() -> None:
    """Health, compression, moves; a dead worker is 502, a frozen one 504, an unknown instance 404, each in time."""
    async with controller(request_timeout_s=1.0) as api, worker_process() as workers, worker_process() as other:
        await begin(workers, api, "a")
        peer = {"enable_p2p": True, "p2p_lookup_ports": [1], "transfer_channel": "nixl", "p2p_init_ports": [8200]}
        info = await begin(other, api, "b", **peer)
        assert info["peer_init_url"] == "localhost:8200"
        assert (await api.post("/health", instance_id="a"))["error_codes"] == {"0": 0}
        await workers.do("unwell", instance="a", code=7)
        assert (await api.post("/health", instance_id="a"))["error_codes"] == {"0": 7}

        compress = {"instance_id": "a", "location": LOCATION, "tokens": PROMPT[:20]}
        assert (await api.post("/compress", method="cachegen", **compress))["num_tokens"] == 20
        assert (await api.post("/decompress", method="cachegen", **compress))["num_tokens"] == 20
        refusal = await api.post("/compress", 502, method="zip", **compress)
        assert "unknown method zip" in refusal["error"]["message"]
        move = {"old_position": ["a", LOCATION], "new_position": ["b", LOCATION], "tokens": PROMPT[:9]}
        assert (await api.post("/move", **move))["num_tokens"] == 9
        back = {"old_position": ["b", LOCATION], "new_position": ["a", LOCATION], "tokens": PROMPT[:9]}
        assert "enable_p2p" in (await api.post("/move", 400, **back))["error"]["message"]

        for path, more in (("/clear", {}), ("/pin", {"tokens": [1]}), ("/compress", {"method": "m"})):
            answer = await api.post(path, 404, instance_id="nobody", location=LOCATION, **more)
            assert "no instance" in answer["error"]["message"]
        await api.post("/health", 404, instance_id="nobody")

        other.freeze()
        began = time.monotonic()
        answer = await api.post("/clear", 504, instance_id="b", location=LOCATION, event_id="mine")
        assert "has not answered" in answer["error"]["message"]
        assert time.monotonic() - began < 10
        failed = await api.post("/check_finish", event_id="mine")
        assert failed == {"event_id": "mine", "status": "failed", "error": answer["error"]["message"]}
        other.thaw()
        await other.kill()
        answer = await api.post("/health", 502, instance_id="b")
        assert "cannot be reached" in answer["error"]["message"]
        done = await api.post("/health", instance_id="a")
        assert await api.post("/check_finish", event_id=done["event_id"]) == {
            "event_id": done["event_id"],
            "status": "finished",
        }
        await api.post("/check_finish", 404, event_id="never")


async def test_a_call_that_still_runs_says_so() -> None:
    """/check_finish answers while the call it asks after waits for a frozen worker."""
    async with controller(request_timeout_s=3.0) as api, worker_process() as workers:
        await begin(workers, api, "a")
        workers.freeze()
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(api.post("/clear", 504, instance_id="a", location=LOCATION, event_id="slow"))

            async def runs() -> bool:
                url = f"http://127.0.0.1:{api.settings.port}/check_finish"
                async with api.http.post(url, json={"event_id": "slow"}) as answer:
                    return answer.status == 200 and (await answer.json())["status"] == "running"

            await until(runs)
            again = await api.post("/clear", 400, instance_id="a", location=LOCATION, event_id="slow")
            assert again["error"]["param"] == "event_id"
            await call


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/query_worker_info", {"instance_id": 7}, 422),
        ("/query_worker_info", {"instance_id": "a", "worker_ids": ["0"]}, 422),
        ("/query_worker_info", {}, 422),
        ("/lookup", {"tokens": "text"}, 422),
        ("/lookup", {"tokens": [1.5]}, 422),
        ("/lookup", {"tokens": [-1]}, 422),
        ("/move", {"old_position": ["a"], "new_position": ["b", "c"]}, 422),
        ("/clear", ["a"], 422),
        ("/nothing", {}, 404),
        ("/env", {}, 404),
        ("/run_script", {}, 404),
    ],
)
async def test_bad_bodies_are_refused(path: str, body: object, status: int) -> None:
    """With the field at fault, in the one shape of errors."""
    async with controller() as api:
        assert (await api.post_raw(path, body, status))["error"]["message"]


async def test_noise_on_the_sockets_is_counted_and_dropped() -> None:
    """Whatever comes, workers are heard afterwards; upstream's index falls silent for good."""
    async with controller() as api, worker_process() as workers:
        await begin(workers, api, "a")
        context = zmq.asyncio.Context()
        noise: list[bytes] = [b"", b"\xc1", b"{", b"{}", b'{"type":"DeRegisterMsg"}', b"\x93" * 5000, b"\x00" * 100_000]
        try:
            push = context.socket(zmq.PUSH)
            push.connect(f"tcp://127.0.0.1:{api.settings.monitor_port}")
            await push.send_multipart(noise)
            for port in (api.settings.reply_port, api.settings.heartbeat_port):
                dealer = context.socket(zmq.DEALER)
                dealer.connect(f"tcp://127.0.0.1:{port}")
                await dealer.send(b"alone")
                for bad in (b"\xc1", NOWHERE):
                    await dealer.send_multipart([b"", bad])
                    async with asyncio.timeout(10):
                        assert b"ErrorMsg" in (await dealer.recv_multipart())[-1]

            async def counted() -> bool:
                return await api.metric("malformed_total") == len(noise) + 6

            await until(counted)
        finally:
            context.destroy(linger=0)
        await workers.do("store", instance="a", tokens=PROMPT)
        await until(lambda: held(api))
        assert len(await api.workers()) == 1


async def test_a_flood_is_bounded() -> None:
    """Registrations and chunks beyond the limits are refused and counted, and the answer says that it may lack something."""
    async with controller(max_workers=1, max_chunks=2) as api, worker_process() as workers:
        await begin(workers, api, "a")
        await workers.do("start", **worker_settings(api.settings, "b"))

        async def refused() -> bool:
            return await api.metric("refused_registrations_total") >= 1

        await until(refused)
        assert [each["instance_id"] for each in await api.workers()] == ["a"]
        await workers.do("store", instance="a", tokens=PROMPT)

        async def full() -> bool:
            return await trust(api, "a") == {"full"}

        await until(full)
        answer = await api.post("/lookup", tokens=PROMPT)
        assert answer["layout_info"] == {"a": [LOCATION, 512]}
        assert "max_chunks" in answer["warnings"][0]
        assert await api.metric("chunks") == 2


async def test_lost_reports_are_made_good_by_a_full_sync() -> None:
    """A number that was left out asks the worker, at its next beat, for everything."""
    async with controller() as api, worker_process() as workers:
        await begin(workers, api, "a")
        await workers.do("store", instance="a", tokens=PROMPT)
        await until(lambda: held(api))
        await workers.do("lose", instance="a", count=5)
        await workers.do("store", instance="a", tokens=[1] * 256)

        async def synced() -> bool:
            return await api.metric("syncs_total") == 1 and await trust(api, "a") == {"exact"}

        await until(synced)
        assert await held(api) == {"a": 768}
        assert await held(api, [1] * 256) == {"a": 256}


def _remembered(state: Path) -> list[Any]:
    """Return what a controller has put down of its workers."""
    return json.loads(state.read_bytes()) if state.exists() else []


async def test_a_restarted_controller_knows_everything_again(tmp_path: Path) -> None:
    """Workers that beat tell it all they hold; those that don't are found by their address, and are said not to be known."""
    state = tmp_path / "workers.json"
    async with worker_process() as workers:
        async with controller(state_file=str(state), worker_timeout_s=2.0) as api:
            settings = api.settings
            first = await begin(workers, api, "beats")
            await begin(workers, api, "silent", lmcache_worker_heartbeat_time=None)
            for instance in ("beats", "silent"):
                await workers.do("store", instance=instance, tokens=PROMPT)

            async def remembered() -> bool:
                return len(await held(api)) == 2 and len(_remembered(state)) == 2

            await until(remembered)
        async with controller(settings) as api:

            async def both_known() -> bool:
                return await held(api) == {"beats": 768} and len(await api.workers()) == 2

            await until(both_known)
            again = {each["instance_id"]: each for each in await api.workers()}
            assert again["beats"]["port"] == first["port"]
            assert await trust(api, "beats") == {"exact"}
            assert await trust(api, "silent") == {"unknown"}
            warnings = (await api.post("/lookup", tokens=PROMPT))["warnings"]
            assert ["silent" in warning for warning in warnings] == [True]
            await workers.do("store", instance="silent", tokens=[3] * 256)
            assert (await api.post("/clear", instance_id="silent", location=LOCATION))["num_tokens"] == 1024


async def test_the_api_describes_itself() -> None:
    """OpenAPI names every call; the page for people needs nothing from elsewhere."""
    async with controller() as api:
        document = await api.get("/openapi.json")
        assert document["openapi"].startswith("3.")
        assert {"/query_worker_info", "/full_lookup", "/check_finish", "/move"} <= set(document["paths"])
        fields = document["components"]["schemas"]["WorkerInfo"]["properties"]
        assert set(fields) == set(FIELDS)
        page = await api.get("/docs")
        assert "POST /query_worker_info" in page
        assert "http" not in page


async def test_keys_guard_all_but_the_description(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key set, nothing about workers is told without it."""
    monkeypatch.setenv("PENSTOCK_API_KEY", "secret")
    async with controller() as api:
        for path in ("/query_worker_info", "/health", "/clear"):
            assert (await api.post(path, 401, instance_id="all", location="x"))["error"]["code"] == "invalid_api_key"
        for path, status in (("/metrics", 401), ("/controller/workers", 401), ("/ready", 200), ("/docs", 200)):
            async with api.http.get(f"http://127.0.0.1:{api.settings.port}{path}") as answer:
                assert answer.status == status
        headers = {"Authorization": "Bearer secret"}
        async with aiohttp.ClientSession(headers=headers) as http:
            assert await Api(api.settings, http).workers() == []


async def test_taken_ports_are_named() -> None:
    """The setting at fault begins the text."""
    async with controller() as api:
        taken = api.settings.monitor_port
        with pytest.raises(StartError, match="monitor_port: cannot listen"):
            async with controller(monitor_port=taken):
                pass
        with pytest.raises(StartError, match="port: cannot listen"):
            async with controller(port=api.settings.port):
                pass
    with pytest.raises(StartError, match="hash_seed"):
        async with controller(hash_seed="no number"):
            pass
