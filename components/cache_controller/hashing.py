"""How LMCache's in-process workers hash chunks of tokens, and the ways they may differ in it.

The hash of a chunk is chained: it hashes the hash before it, the chunk's token ids and nothing more, into 64 bits (LMCache's
`lmcache/v1/token_database.py`). What the chain begins with is vLLM's `NONE_HASH`, which comes from PYTHONHASHSEED
(`vllm/v1/core/kv_cache_utils.py`). No worker says which algorithm, seed and chunk size it uses.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Algorithm = Literal["builtin", "sha256_cbor"]

CHUNK_SIZES = (256, 16, 32, 64, 128, 512, 1024)
"""Chunk sizes in use, in tokens; LMCache's default comes first."""

SEEDS = ("0", "1", "42", "123")
"""Values of PYTHONHASHSEED that people choose."""

_VLLM_SEED = "vllm-none-hash"  # vLLM's own when PYTHONHASHSEED is unset (DEFAULT_NONE_HASH_SEED)
_DIGEST_BYTES = 8


@dataclass(frozen=True)
class Root:
    """What a chain of chunk hashes begins with.

    Attributes:
        algorithm: hashes the chunks that follow.
        value: the first parent.
        origin: for a person, such as ``PYTHONHASHSEED=0``.
    """

    algorithm: Algorithm
    value: int
    origin: str


@dataclass(frozen=True)
class Scheme:
    """One way to hash tokens in chunks.

    Attributes:
        root: algorithm and first parent.
        chunk_size: tokens a chunk.
    """

    root: Root
    chunk_size: int

    def __str__(self) -> str:
        return f"{self.root.algorithm}, {self.root.origin}, chunks of {self.chunk_size} tokens"


def chunk_hashes(tokens: Sequence[int], scheme: Scheme) -> list[int]:
    """Return the hash of every chunk of `tokens`; the last one may be of a chunk that is not full."""
    hash_chunk, parent, size = _HASHES[scheme.root.algorithm], scheme.root.value, scheme.chunk_size
    hashes = []
    for start in range(0, len(tokens), size):
        parent = hash_chunk((parent, tuple(tokens[start : start + size]), ()))
        hashes.append(parent)
    return hashes


def matched_tokens(chunks: int, tokens: int, chunk_size: int) -> int:
    """Return how many of `tokens` tokens lie in the first `chunks` chunks."""
    return min(chunks * chunk_size, tokens)


def root_of(algorithm: Algorithm, seed: str) -> Root:
    """Return where the chain begins in an engine that runs with ``PYTHONHASHSEED=seed``.

    Raises:
        ValueError: it is no seed Python takes, or the algorithm needs a package that is not installed.
    """
    if algorithm == "sha256_cbor":
        return Root(algorithm, _cbor(seed), f"PYTHONHASHSEED={seed}")
    if not (seed.isdecimal() and int(seed) < 2**32):
        raise ValueError(f"must be a whole number from 0 to {2**32 - 1}, as Python's PYTHONHASHSEED")
    # Python fixes how it hashes text when it starts; only another one can tell.
    told = subprocess.run(
        [sys.executable, "-S", "-c", "import sys; print(hash(sys.argv[1]))", seed],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        check=True,
        timeout=30,
    )
    return Root("builtin", int(told.stdout), f"PYTHONHASHSEED={seed}")


def likely_roots(first: Root) -> list[Root]:
    """Return the roots engines may have, `first` before the others; few of the algorithm whose hashes are slow."""
    roots = [first, Root("builtin", 0, "without vLLM"), *(root_of("builtin", seed) for seed in SEEDS)]
    if importlib.util.find_spec("cbor2") is not None:
        roots.append(Root("sha256_cbor", _cbor(_VLLM_SEED), "PYTHONHASHSEED unset"))
        roots.append(root_of("sha256_cbor", SEEDS[0]))
    return list(dict.fromkeys(roots))


def likely_schemes(first: Scheme, roots: Sequence[Root]) -> list[Scheme]:
    """Return the schemes to try on an instance whose chunks `first` does not find."""
    sizes = dict.fromkeys((first.chunk_size, *CHUNK_SIZES))
    return [scheme for size in sizes for root in roots if (scheme := Scheme(root, size)) != first]


def _cbor(value: Any) -> int:
    """Hash as vLLM's ``sha256_cbor`` does, and shorten as LMCache does.

    Raises:
        ValueError: cbor2 is not installed.
    """
    try:
        import cbor2
    except ImportError:
        raise ValueError("sha256_cbor needs the package cbor2, which comes with vLLM") from None
    digest = hashlib.sha256(cbor2.dumps(value, canonical=True)).digest()
    return int.from_bytes(digest[:_DIGEST_BYTES], "big")


_HASHES: dict[Algorithm, Callable[[Any], int]] = {"builtin": hash, "sha256_cbor": _cbor}
