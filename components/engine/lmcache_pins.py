"""Keeps prompts in the first level of LMCache servers, in a process of its own: LMCache's client imports torch.

A lookup takes a read lock on what it finds, and nothing that is locked is evicted. A pin is a lookup whose locks are kept
and taken anew before they expire (``--l1-read-ttl-seconds``, 300 by default). Speaks JSON, a line a command and a line
an answer, on standard input and output; gives everything back when the input ends.
"""

import json
import logging
import os
import select
import time
from dataclasses import dataclass
from itertools import count
from typing import Any

_RENEW_S = 60.0
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Pin:
    """What is to be kept.

    Attributes:
        url: the server's ZeroMQ address.
        model: as its engines registered it.
        ranks: parts of each chunk.
        tokens: the prompt.
    """

    url: str
    model: str
    ranks: int
    tokens: tuple[int, ...]


class Pins:
    """The pins, and the locks that hold them."""

    def __init__(self) -> None:
        self._numbers = count()
        self._clients: dict[str, Any] = {}
        self._keys: dict[Pin, Any] = {}

    def pin(self, pin: Pin) -> int:
        """Hold what there is of a prompt, anew if it is held already. Return how many tokens that is.

        Raises:
            TimeoutError: the server does not answer.
        """
        client = self._client(pin.url)
        chunk = int(client.get_chunk_size().result(timeout=_TIMEOUT_S))
        name = f"penstock-pin-{os.getpid()}-{next(self._numbers)}"
        client.lookup(self._key(pin, name, len(pin.tokens) // chunk * chunk), pin.ranks).result(timeout=_TIMEOUT_S)
        held = chunk * (client.wait_prefetch_status(name, _TIMEOUT_S).result(timeout=2 * _TIMEOUT_S) or 0)
        former = self._keys.pop(pin, None)
        if held:
            self._keys[pin] = self._key(pin, name, held)
        else:
            client.end_session(name).result(timeout=_TIMEOUT_S)
        if former is not None:  # only now: nothing is unlocked in between
            self._give_back(pin, former)
        return held

    def release(self, url: str) -> None:
        """Give back all that is held at a server."""
        for pin in [pin for pin in self._keys if pin.url == url]:
            self._give_back(pin, self._keys.pop(pin))

    def renew(self) -> None:
        """Take every lock anew. A server that is away loses its pins with all else it held."""
        for pin in list(self._keys):
            try:
                self.pin(pin)
            except TimeoutError:
                self._keys.pop(pin, None)

    def release_all(self) -> None:
        """Give everything back."""
        for url in list(self._clients):
            self.release(url)

    def _give_back(self, pin: Pin, key: Any) -> None:
        client = self._client(pin.url)
        try:
            client.free_lookup_locks(key, pin.ranks).result(timeout=_TIMEOUT_S)
            client.end_session(key.request_id).result(timeout=_TIMEOUT_S)
        except TimeoutError:
            logging.getLogger(__name__).warning("locks at %s could not be given back; they expire", pin.url)

    def _client(self, url: str) -> Any:
        from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

        if url not in self._clients:
            self._clients[url] = RequestClientFactory.create(url)
        return self._clients[url]

    def _key(self, pin: Pin, name: str, end: int) -> Any:
        from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey

        return IPCCacheServerKey(
            model_name=pin.model,
            world_size=pin.ranks,
            worker_id=None,
            token_ids=pin.tokens,
            start=0,
            end=end,
            request_id=name,
            num_kv_readers=1,
        )


def main() -> None:
    """Do what the lines say."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # LMCache writes to standard output
    pins, pending, due_s = Pins(), b"", time.monotonic() + _RENEW_S
    while True:
        if select.select([0], [], [], max(0.0, due_s - time.monotonic()))[0]:
            data = os.read(0, 1 << 20)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                answers.write(json.dumps(_do(pins, json.loads(line))) + "\n")
                answers.flush()
        if time.monotonic() >= due_s:
            pins.renew()
            due_s = time.monotonic() + _RENEW_S
    pins.release_all()
    os._exit(0)  # LMCache's threads would keep it


def _do(pins: Pins, command: dict[str, Any]) -> dict[str, Any]:
    try:
        if command["do"] == "release":
            pins.release(command["url"])
            return {"tokens": 0}
        return {"tokens": pins.pin(Pin(command["url"], command["model"], command["ranks"], tuple(command["tokens"])))}
    except TimeoutError:
        return {"error": f"the server at {command['url']} does not answer"}


if __name__ == "__main__":
    main()
