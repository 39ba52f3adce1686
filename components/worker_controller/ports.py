"""TCP ports for engines: the lowest that neither an engine nor anybody else on this machine has."""

import socket


class NoPortError(Exception):
    """Every port of the range is taken."""


class Ports:
    """The ports `first` to `last` on `host`."""

    def __init__(self, host: str, first: int, last: int) -> None:
        self._host = host
        self._range = range(first, last + 1)
        self._taken: set[int] = set()

    def take(self, besides: frozenset[int] = frozenset()) -> int:
        """Return a port that is free now, and keep it from others until it is given back.

        Args:
            besides: ports not to take.

        Raises:
            NoPortError: there is none.
        """
        for port in self._range:
            if port not in self._taken and port not in besides and _is_free(self._host, port):
                self._taken.add(port)
                return port
        raise NoPortError(f"no port from {self._range[0]} to {self._range[-1]} is free")

    def give_back(self, port: int) -> None:
        """Let others have `port`."""
        self._taken.discard(port)


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM's server does
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True
