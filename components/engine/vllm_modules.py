"""The modules of this package that import vLLM or LMCache, each imported at its first use, because that takes seconds."""

import os
from types import ModuleType

from components.engine.protocol import EngineStartError
from components.engine.vllm_args import ENVIRONMENT


def import_vllm() -> None:
    """Import vLLM, once; on a stack of its own, because some failed imports in it keep every frame below them alive.

    Raises:
        EngineStartError: it cannot be imported.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        compat()
        parsers()
    except ImportError as error:
        raise EngineStartError(f"vLLM cannot be imported: {one_line(error)}") from error


def compat() -> ModuleType:
    """Return the module of what differs between vLLM versions."""
    from components.engine import vllm_compat

    return vllm_compat


def kv() -> ModuleType:
    """Return the module of vLLM's KV events."""
    from components.engine import vllm_kv

    return vllm_kv


def lookup() -> ModuleType:
    """Return the module of LMCache's lookups."""
    from components.engine import lmcache_lookup

    return lmcache_lookup


def parsers() -> ModuleType:
    """Return the module of vLLM's parsers of generated text."""
    from components.engine import vllm_parsers

    return vllm_parsers


def one_line(error: BaseException) -> str:
    """Return up to 300 characters of an error's text. vLLM sees token ids, never a prompt's text, so none is in it."""
    text = str(error.args[0]) if error.args else str(error)
    return " ".join((text or type(error).__name__).split())[:300]
