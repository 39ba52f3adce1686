"""LMCache's protocol between in-process workers and their controller: the only code that knows its messages and ZeroMQ.

Workers register (and ask) at a ROUTER socket, beat at another one, which the answer to a registration names, and push
what they hold to a PULL socket; each listens at a REP socket for commands. The messages are LMCache's own classes
(`lmcache.v1.cache_controller.message`), imported, never copied.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from components.cache_controller.commands import (
    ClearCommand,
    Command,
    CompressCommand,
    HealthCommand,
    MoveCommand,
    PinCommand,
    WorkerFailedError,
    WorkerSilentError,
    WorkerUnreachableError,
)
from components.cache_controller.holdings import Change
from components.cache_controller.lmcache_messages import ProtocolError, load_messages
from components.cache_controller.reports import Reports, SyncBegin, WorkerAddress
from components.cache_controller.roster import WorkerKey
from components.telemetry.logs import trail

log = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 64 * 2**20
_MAX_NAME = 256
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,255}")
_NOT_A_MESSAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)


class LMCacheProtocol:
    """Listens to workers, and tells them what to do.

    Args:
        reports: takes what they report.
    """

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._messages = load_messages()
        self._from_msgpack = msgspec.msgpack.Decoder(self._messages.Msg)
        self._from_json = msgspec.json.Decoder(self._messages.Msg)
        self._to_msgpack = msgspec.msgpack.Encoder()
        self._context = zmq.asyncio.Context()
        self._sockets: list[zmq.asyncio.Socket] = []
        self._heartbeat_port = 0
        self._host = ""

    def open(self, host: str, monitor: int, reply: int, heartbeat: int) -> None:
        """Take the ports at `host` where workers push, register and beat; `serve` listens to them.

        Raises:
            ProtocolError: a port is taken.
        """
        self._bind(zmq.PULL, host, monitor, "monitor_port")
        self._bind(zmq.ROUTER, host, reply, "reply_port")
        self._bind(zmq.ROUTER, host, heartbeat, "heartbeat_port")
        self._host, self._heartbeat_port = host, heartbeat

    async def serve(self) -> None:
        """Take what workers report, for ever."""
        monitor, reply, heartbeat = self._sockets
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_pushes(monitor))
            tasks.create_task(self._answer(reply))
            tasks.create_task(self._answer(heartbeat))

    def close(self) -> None:
        """Give the ports back."""
        for each in self._sockets:
            each.close(linger=0)
        self._context.destroy(linger=0)

    def _bind(self, kind: int, host: str, port: int, name: str) -> None:
        bound = self._context.socket(kind)
        self._sockets.append(bound)
        bound.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        bound.setsockopt(zmq.LINGER, 0)
        try:
            address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
            bound.setsockopt(zmq.IPV6, int(":" in address))
            bound.bind(f"tcp://{_bracketed(address)}:{port}")
        except (zmq.ZMQError, OSError) as error:
            raise ProtocolError(f"{name}: cannot listen on {host}:{port}: {error}") from error

    async def _take_pushes(self, pull: zmq.asyncio.Socket) -> None:
        while True:
            for part in await pull.recv_multipart():
                self._guarded(part, self._pushed)

    async def _answer(self, router: zmq.asyncio.Socket) -> None:
        while True:
            frames = await router.recv_multipart(copy=False)
            if len(frames) < 3:
                self._reports.malformed()
                continue
            payload = frames[2]
            answer = self._guarded(payload.bytes, partial(self._asked, peer=_peer(payload)))
            if answer is None:
                answer = self._messages.ErrorMsg(error="not a request of a worker")
            with suppress(zmq.ZMQError):  # the worker is gone, or takes nothing
                await router.send_multipart([frames[0].bytes, b"", self._to_msgpack.encode(answer)], flags=zmq.DONTWAIT)

    def _guarded(self, data: bytes, take: Callable[[Any], Any]) -> Any:
        """Decode and take one message; whatever is wrong with it ends nothing."""
        try:
            decoder = self._from_json if data.startswith(b"{") else self._from_msgpack
            return take(decoder.decode(data))
        except _NOT_A_MESSAGE:
            self._reports.malformed()
        except Exception as error:  # noqa: BLE001 the outermost catch: no message ends what all workers depend on
            log.error("a worker's message could not be taken", extra={"error": trail(error)})  # noqa: TRY400
        return None

    def _pushed(self, message: Any) -> None:
        kinds, reports = self._messages, self._reports
        match message:
            case kinds.BatchedKVOperationMsg():
                came = kinds.OpType.ADMIT
                changes = [Change(each.op_type is came, each.key, each.seq_num) for each in message.operations]
                reports.changed(_key(message), message.location, changes)
            case kinds.KVAdmitMsg() | kinds.KVEvictMsg():
                change = Change(isinstance(message, kinds.KVAdmitMsg), message.key, message.seq_num)
                reports.changed(_key(message), message.location, [change])
            case kinds.FullSyncBatchMsg():
                reports.sync_batch(_key(message), message.sync_id, message.batch_id, message.keys)
            case kinds.FullSyncEndMsg():
                reports.sync_ends(_key(message), message.sync_id)
            case kinds.DeRegisterMsg():
                reports.deregistered(WorkerAddress(_key(message), message.ip, message.port))
            case _:
                reports.malformed()

    def _asked(self, message: Any, peer: str) -> Any:
        """Return the answer to a request; None when it is none."""
        kinds, reports = self._messages, self._reports
        match message:
            case kinds.RegisterMsg():
                refusal = reports.registered(_address(message))
                if refusal:
                    return kinds.ErrorMsg(error=refusal)
                return kinds.RegisterRetMsg(extra_config={"heartbeat_url": self._heartbeat_url(peer)})
            case kinds.HeartbeatMsg():
                reason = reports.beat(_address(message))
                return kinds.HeartbeatRetMsg(commands=[kinds.FullSyncCommand(reason=reason)] if reason else [])
            case kinds.FullSyncStartMsg():
                begin = SyncBegin(message.sync_id, message.location, message.total_keys, message.batch_count)
                accepted = reports.sync_begins(_key(message), begin)
                refusal = None if accepted else "the worker is not registered"
                return kinds.FullSyncStartRetMsg(sync_id=message.sync_id, accepted=accepted, error_msg=refusal)
            case kinds.FullSyncStatusMsg():
                state = reports.sync_state(_key(message), message.sync_id)
                # A worker stores nothing while it syncs; nobody has to wait for the others.
                return kinds.FullSyncStatusRetMsg(
                    sync_id=message.sync_id,
                    is_complete=state.complete,
                    global_progress=float(state.complete),
                    can_exit_freeze=state.over,
                    missing_batches=state.missing,
                )
            case kinds.BatchedP2PLookupMsg():
                found = reports.peer_match(message.instance_id, message.hashes)
                told = (found.instance_id, found.location, found.chunks, found.peer_url) if found else ("", "", 0, "")
                return kinds.BatchedP2PLookupRetMsg(layout_info=[told])
            case _:
                reports.malformed()
                return None

    def _heartbeat_url(self, peer: str) -> str:
        """Return where a worker that came from the address `peer` beats."""
        host = self._host
        if host in {"", "0.0.0.0", "::", "*"}:
            host = _own_address(peer)
        return f"{_bracketed(host)}:{self._heartbeat_port}"

    async def tell(self, host: str, port: int, event_id: str, command: Command, timeout_s: float) -> int:
        """Have a worker do something; return its number of tokens, or its error code for `HealthCommand`.

        Each command has a socket of its own, so a worker that never answers spoils nothing for the next one.

        Raises:
            WorkerUnreachableError: nobody listens there.
            WorkerFailedError: the worker answers with an error, or with what is no answer.
            WorkerSilentError: it does not answer in time.
        """
        message = self._command(event_id, command)
        name = f"the worker at {host}:{port}"
        asked = self._context.socket(zmq.REQ)
        asked.setsockopt(zmq.LINGER, 0)
        asked.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        asked.setsockopt(zmq.IPV6, int(":" in host))
        try:
            async with asyncio.timeout(timeout_s):
                await _reach(host, port)
                asked.connect(f"tcp://{_bracketed(host)}:{port}")
                await asked.send(self._to_msgpack.encode(message))
                answer = self._from_msgpack.decode(await asked.recv())
        except TimeoutError:
            if await _listens(host, port):
                raise WorkerSilentError(f"{name} is there and has not answered for {timeout_s:g} s") from None
            raise WorkerUnreachableError(f"{name} cannot be reached") from None
        except (OSError, zmq.ZMQError) as error:
            raise WorkerUnreachableError(f"{name} cannot be reached: {error}") from None
        except _NOT_A_MESSAGE:
            raise WorkerFailedError(f"{name} answers what is no message of LMCache's") from None
        finally:
            asked.close(linger=0)
        if isinstance(answer, self._messages.ErrorMsg):
            raise WorkerFailedError(f"{name} says: {answer.error[:300]}")
        return int(answer.error_code if isinstance(command, HealthCommand) else answer.num_tokens)

    def _command(self, event_id: str, command: Command) -> Any:
        kinds = self._messages
        match command:
            case ClearCommand(location):
                return kinds.ClearWorkerMsg(worker_event_id=event_id, location=location)
            case PinCommand(location, tokens):
                return kinds.PinWorkerMsg(worker_event_id=event_id, location=location, tokens=tokens)
            case CompressCommand(location, method, some, undo):
                kind = kinds.DecompressWorkerMsg if undo else kinds.CompressWorkerMsg
                return kind(worker_event_id=event_id, method=method, location=location, tokens=some)
            case MoveCommand(location, peer_url, peer_location, some, copy):
                where = (peer_url, peer_location)
                return kinds.MoveWorkerMsg(
                    worker_event_id=event_id, old_position=location, new_position=where, tokens=some, copy=copy
                )
            case HealthCommand():
                return kinds.HealthWorkerMsg(worker_event_id=event_id)


def _key(message: Any) -> WorkerKey:
    return WorkerKey(message.instance_id, message.worker_id)


def _address(message: Any) -> WorkerAddress:
    """Return who and where a worker says it is.

    Raises:
        ValueError: nobody could be there.
    """
    if not (_HOST.fullmatch(message.ip) and 0 < message.port < 2**16 and 0 < len(message.instance_id) <= _MAX_NAME):
        raise ValueError("no address of a worker")
    return WorkerAddress(_key(message), message.ip, message.port, message.peer_init_url)


def _peer(frame: zmq.Frame) -> str:
    """Return the IP address a frame came from."""
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return "127.0.0.1"


def _own_address(peer: str) -> str:
    """Return the address of this machine that `peer` reaches."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # a datagram socket connects without sending anything
        probe.connect((peer, 9))
        return str(probe.getsockname()[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _reach(host: str, port: int) -> None:
    """Find out at once whether anybody listens; ZeroMQ would try for ever.

    Raises:
        OSError: nobody does.
    """
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _listens(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(0.5):
            await _reach(host, port)
    except (OSError, TimeoutError):
        return False
    return True
