"""LMCache's own message classes, without the rest of LMCache."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_MESSAGES = "lmcache.v1.cache_controller.message"


class ProtocolError(Exception):
    """The protocol cannot be spoken: LMCache is missing, or a port is taken."""


def load_messages() -> ModuleType:
    """Import LMCache's message classes, and nothing else of it.

    Its packages import torch when they are imported (1.5 s, 315 MB); the module of the messages needs none of that (0.1 s,
    28 MB). So the packages above it are stood in for by empty ones while it is imported.

    Raises:
        ProtocolError: LMCache is not installed, or has no such module.
    """
    spec = importlib.util.find_spec("lmcache")
    if spec is None or not spec.submodule_search_locations:
        raise ProtocolError("LMCache is not installed; its workers cannot register here")
    before = set(sys.modules)
    root = Path(next(iter(spec.submodule_search_locations)))
    packages = _MESSAGES.split(".")[:-1]
    for depth in range(1, len(packages) + 1):
        name = ".".join(packages[:depth])
        if name not in sys.modules:
            stand_in = ModuleType(name)
            stand_in.__path__ = [str(root.joinpath(*packages[1:depth]))]
            sys.modules[name] = stand_in
    try:
        return importlib.import_module(_MESSAGES)
    except ImportError as error:
        raise ProtocolError(f"LMCache's messages cannot be imported: {error}") from error
    finally:
        # Whoever imports LMCache for real later on finds no stand-ins.
        for name in {name for name in set(sys.modules) - before if name.split(".")[0] == "lmcache"}:
            del sys.modules[name]
