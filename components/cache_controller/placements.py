"""Reads a coordinator's directory: which server holds how much of a prompt. No I/O."""

import msgspec


class Placement(msgspec.Struct, frozen=True):
    """A copy of one object.

    Attributes:
        instance_id: the server that has it.
        tier: ``l1`` or ``l2``.
    """

    instance_id: str
    tier: str


class ObjectKey(msgspec.Struct, frozen=True):
    """Names an object: one rank's part of one chunk.

    Attributes:
        chunk_hash_hex: of the chunk; chained, so no two chunks of a prompt share it.
        object_group_id: 0 for what every model has; others are layers with a sliding window, which may rightly miss chunks.
    """

    chunk_hash_hex: str
    object_group_id: int = 0


class KeyPlacements(msgspec.Struct, frozen=True):
    """Where an object is."""

    key: ObjectKey
    placements: list[Placement] = []


class DirectoryAnswer(msgspec.Struct, frozen=True):
    """The answer to ``POST /directory/lookup``.

    Attributes:
        chunks: full chunks of the prompt, by the coordinator's chunk size.
        results: their objects, chunk by chunk.
    """

    chunks: int = 0
    results: list[KeyPlacements] = []


def prefixes(answer: DirectoryAnswer, ranks: int) -> dict[str, tuple[str, int]]:
    """Return, for each server, the location of the last chunk it holds without a hole, and how many those are.

    Args:
        answer: the directory's.
        ranks: parts of a chunk; one counts when the server has all of them.
    """
    chunks: dict[str, list[KeyPlacements]] = {}
    for result in answer.results:
        if result.key.object_group_id == 0:
            chunks.setdefault(result.key.chunk_hash_hex, []).append(result)
    found: dict[str, tuple[str, int]] = {}
    for index, objects in enumerate(chunks.values()):
        held = _holders(objects, ranks)
        found |= {server: (tier, index + 1) for server, tier in held.items() if found.get(server, ("", 0))[1] == index}
    return found


def _holders(objects: list[KeyPlacements], ranks: int) -> dict[str, str]:
    """Return the servers that have all parts of a chunk, and the level where the slowest of them lies."""
    tiers: dict[str, list[str]] = {}
    for each in objects:
        best: dict[str, str] = {}
        for placement in each.placements:
            best[placement.instance_id] = min(best.get(placement.instance_id, placement.tier), placement.tier)
        for server, tier in best.items():
            tiers.setdefault(server, []).append(tier)
    return {server: max(found) for server, found in tiers.items() if len(found) >= ranks}
