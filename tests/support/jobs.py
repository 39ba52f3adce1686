"""A job queue inside the test's own event loop, a worker that speaks frames by hand, an engine that does as it is told."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from components.bus.client import Bus
from components.bus.member import Member
from components.bus.process import Process
from components.graph.load import graph_from_raw
from components.graph.schema import Nats
from components.jobs.__main__ import serve
from components.launch.child import start_fresh
from components.wire.process import ProcessState
from components.wire.subjects import Subjects
from tests.support.edge import free_port

MESSAGES = [{"role": "user", "content": "Hello!"}]


@dataclass
class JobQueue:
    """A running queue, and the means to talk to it.

    Attributes:
        url: its HTTP address.
        http: a client, without a key.
    """

    url: str
    http: aiohttp.ClientSession
    member: Member

    @property
    def ws_url(self) -> str:
        """Its address for workers."""
        return "ws" + self.url.removeprefix("http")

    async def ask(self, method: str, path: str, body: Any = None, status: int | None = None, **headers: str) -> Any:
        """Return the JSON of an answer; `status` is asserted where it is given."""
        async with self.http.request(method, self.url + path, json=body, headers=headers) as response:
            text = await response.text()
            assert response.status == (status or response.status), f"{response.status} {text}"
            assert status is not None or response.status < 300, f"{response.status} {text}"
            return json.loads(text) if text else None

    async def submit(self, text: str = "Hello!", **fields: Any) -> str:
        """Submit a job that says `text`, and return its id; fields of the job's body, or else of its payload."""
        body = {name: fields.pop(name) for name in ("id", "config_id", "mode", "job_type") if name in fields}
        payload = {"messages": [{"role": "user", "content": text}], **fields}
        job = await self.ask("POST", "/jobs", {"payload": payload, **body})
        assert job["status"] in {"pending", "running"}
        return str(job["id"])

    async def finished(self, job_id: str, wait_s: float = 30) -> Any:
        """Return a job once it is finished."""
        async with asyncio.timeout(wait_s):
            while True:
                job = await self.ask("GET", f"/jobs/{job_id}?wait_s=1")
                if job["status"] in {"completed", "failed"}:
                    return job

    async def until(self, condition: Callable[[Any], bool], wait_s: float = 10) -> Any:
        """Return what ``/health`` says once it fulfils `condition`."""
        async with asyncio.timeout(wait_s):
            while not condition(health := await self.ask("GET", "/health")):
                await asyncio.sleep(0.02)
        return health


@asynccontextmanager
async def job_queue(nats: Nats, port: int | None = None, **settings: Any) -> AsyncIterator[JobQueue]:
    """Run a queue with the ``jobs`` settings `settings`."""
    port = port or free_port()
    jobs = {"http_port": port, "workers": 0, **settings}
    graph = graph_from_raw({"model": "demo", "name": "test", "nats": nats.url, "components": {"jobs": jobs}})
    bus = await Bus.connect(nats, "jobs-0")
    subjects = Subjects(graph.name)
    member = Member(bus, subjects, "jobs-0", "jobs")
    try:
        async with aiohttp.ClientSession() as client, asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(serve(Process(graph, bus, subjects, member, tasks)))
            async with asyncio.timeout(20):
                while member.status().state is not ProcessState.READY and not serving.done():
                    await asyncio.sleep(0.01)
            try:
                yield JobQueue(f"http://127.0.0.1:{port}", client, member)
            finally:
                member.stopping.set()
                await serving
                for task in asyncio.all_tasks():
                    if task.get_coro().__qualname__ in {"Dispatch._pump", "Dispatch.watch"}:  # type: ignore[union-attr]
                        task.cancel()
    finally:
        await bus.close()


class RawWorker:
    """A worker by hand: sends what the test says, and shows what comes."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: aiohttp.ClientSession) -> None:
        self.socket = socket
        self._session = session

    @classmethod
    async def connect(cls, queue: JobQueue, token: str | None = None) -> "RawWorker":
        """Connect, without registering."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        session = aiohttp.ClientSession()
        try:
            return cls(await session.ws_connect(f"{queue.ws_url}/ws", headers=headers, max_msg_size=0), session)
        except aiohttp.ClientError:
            await session.close()
            raise

    @classmethod
    async def register(cls, queue: JobQueue, worker_id: str = "w", capacity: int = 1, **fields: Any) -> "RawWorker":
        """Connect and register."""
        worker = await cls.connect(queue)
        await worker.send("register", **({"worker_id": worker_id, "config_id": "default", "capacity": capacity} | fields))
        assert (await worker.next())["type"] == "registered"
        return worker

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a frame."""
        await self.socket.send_str(json.dumps({"type": kind, **fields}))

    async def about(self, kind: str, job: Any, **fields: Any) -> None:
        """Send a frame about a job."""
        await self.send(kind, job_id=job["job_id"], fence_token=job["fence_token"], **fields)

    async def next(self, wait_s: float = 10) -> Any:
        """Return the next frame."""
        return json.loads(await self.socket.receive_str(timeout=wait_s))

    async def job(self, wait_s: float = 10) -> Any:
        """Return the next frame, which must be a job."""
        frame = await self.next(wait_s)
        assert frame["type"] == "job", frame
        return frame

    async def silent(self, wait_s: float = 0.3) -> bool:
        """Return whether nothing comes for a while."""
        try:
            frame = await self.next(wait_s)
        except TimeoutError:
            return True
        raise AssertionError(frame)

    async def close(self) -> None:
        """Leave."""
        await self.socket.close()
        await self._session.close()


@dataclass
class ScriptedEngine:
    """An OpenAI endpoint that answers with as many words as are asked for.

    Attributes:
        requests: bodies that came.
        started_s: when each came, on the monotonic clock.
        finished: how many were answered to the end.
        aborted: how many were broken off by the client.
        token_s: time each token takes.
        waiting: what its metrics say.
        status: of answers; others than 200 are errors.
    """

    port: int = field(default_factory=free_port)
    requests: list[Any] = field(default_factory=list)
    started_s: list[float] = field(default_factory=list)
    finished: int = 0
    aborted: int = 0
    token_s: float = 0.0
    waiting: int = 0
    status: int = 200
    healthy: bool = True

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 27)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "served"}]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}.0\n')

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.started_s.append(time.monotonic())
        if self.status != 200:
            return web.json_response({"error": {"message": "as told", "code": self.status}}, status=self.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for number in range(count := body.get("max_tokens", 512)):
                await asyncio.sleep(self.token_s)
                await response.write(_event({"content": f"w{number} "}, "length" if number == count - 1 else None, body))
        except (ConnectionError, asyncio.CancelledError):
            self.aborted += 1
            raise
        usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
        final = {"id": "c", "model": body["model"], "choices": [], "usage": usage}
        await response.write(b"data: " + json.dumps(final).encode() + b"\n\ndata: [DONE]\n\n")
        self.finished += 1
        return response


def _event(delta: dict[str, Any], finish_reason: str | None, body: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"id": "c", "model": body["model"], "choices": [choice]}).encode() + b"\n\n"


class WorkerProcess:
    """``python -m components.jobs.<module>`` in a process of its own."""

    def __init__(self, folder: Path, name: str, **environment: str) -> None:
        """Prepare.

        Args:
            folder: for its log and its state.
            name: its worker id.
            environment: its variables, beside the required ones.
        """
        self.name = name
        self.log = folder / f"{name}.log"
        self.environment = {
            "CASOLA_CONFIG_ID": "default",
            "CASOLA_INSTANCE_ID": name,
            "CASOLA_STATE_DIR": str(folder / "state"),
            "VLLM_MODEL": "served",
            **environment,
        }
        self.process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(
        cls, folder: Path, name: str, queue: JobQueue | str, engine: ScriptedEngine | None = None, **environment: str
    ) -> "WorkerProcess":
        """Start a worker of `queue` on `engine`."""
        url = queue if isinstance(queue, str) else queue.ws_url
        port = {"VLLM_PORT": str(engine.port)} if engine else {}
        worker = cls(folder, name, CASOLA_WS_URL=url, **port, **environment)
        await worker.run()
        return worker

    async def run(self, module: str = "worker", *prefix: str) -> None:
        """Start the process."""
        argv = [*prefix, sys.executable, "-m", f"components.jobs.{module}"]
        child = await start_fresh(argv, {**os.environ, **self.environment}, self.log)
        assert isinstance(child, asyncio.subprocess.Process)
        self.process = child

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def exit_code(self, wait_s: float = 20) -> int:
        """Return the exit code once it has ended."""
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), wait_s)

    async def end(self) -> None:
        """End it, whatever it does."""
        if self.process is not None and self.process.returncode is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            await self.process.wait()


async def eventually(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], wait_s: float = 20) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(wait_s):
        while True:
            holds = condition()
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            await asyncio.sleep(0.02)
