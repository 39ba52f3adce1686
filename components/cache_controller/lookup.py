"""Which instances hold the beginning of a prompt, and how much of it; and whether they hash it as this controller does.

No worker says how it hashes. A hash of 64 bits that is found is proof: from then on the instance is known to use that
scheme. An instance that holds chunks of which none was ever found is looked up by the other likely schemes, and when none
of them finds anything either, the answer says so instead of silently being empty.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from components.cache_controller.hashing import Root, Scheme, chunk_hashes, likely_schemes, matched_tokens
from components.cache_controller.holdings import Holdings, Trust

log = logging.getLogger(__name__)

_TRIED_AT_ONCE = 32
_NAMED = 3


@dataclass(frozen=True)
class Match:
    """What an instance holds of a prompt.

    Attributes:
        instance_id: the instance.
        location: where the last of the matched tokens lie.
        tokens: how many tokens it holds, from the first on.
    """

    instance_id: str
    location: str
    tokens: int


@dataclass
class Found:
    """The answer to a lookup.

    Attributes:
        matches: instances that hold something, longest first.
        warnings: why there may be more than was found.
    """

    matches: list[Match] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def sort(self) -> None:
        """Put the longest match first; equal ones by name."""
        self.matches.sort(key=lambda match: (-match.tokens, match.instance_id))


class Lookup:
    """Looks prompts up in the holdings of in-process workers.

    Args:
        scheme: how instances are expected to hash.
        roots: where else their chains may begin, see `likely_roots`.
    """

    def __init__(self, scheme: Scheme, roots: Sequence[Root]) -> None:
        self._scheme = scheme
        self._usual = (scheme,)
        self._others = likely_schemes(scheme, roots)
        self._proven: dict[str, Scheme] = {}
        self._turn = 0

    def scheme(self, instance_id: str) -> Scheme | None:
        """Return how an instance hashes; None while nothing of it was found yet."""
        return self._proven.get(instance_id)

    def forget(self, instance_id: str) -> None:
        """An instance is new, or gone: how it hashes has to be found out again."""
        self._proven.pop(instance_id, None)

    def differs(self, instance_id: str) -> bool:
        """Whether an instance is known to hash otherwise than expected."""
        return self._proven.get(instance_id, self._scheme) != self._scheme

    def find(self, tokens: Sequence[int], instances: Mapping[str, Sequence[Holdings]]) -> Found:
        """Look `tokens` up; a prefix counts as far as all workers of an instance hold it.

        Args:
            tokens: the prompt's token ids.
            instances: the holdings of each instance's workers.
        """
        if not tokens:
            return Found()
        hashes, found, unproven = _Hashes(tokens), Found(), []
        usual = [hashes.first(self._scheme)]
        for instance_id, workers in instances.items():
            scheme = self._proven.get(instance_id) or self._prove(instance_id, workers, usual, self._usual)
            if scheme is None:
                unproven.append(instance_id)
            elif match := _match(instance_id, workers, hashes, scheme):
                found.matches.append(match)
        unproven = [instance_id for instance_id in unproven if any(worker.holds_any for worker in instances[instance_id])]
        others = [hashes.first(scheme) for scheme in self._others] if unproven else []
        for instance_id in self._next_in_turn(unproven):
            workers = instances[instance_id]
            scheme = self._prove(instance_id, workers, others, self._others)
            if scheme and (match := _match(instance_id, workers, hashes, scheme)):
                found.matches.append(match)
        found.warnings = self._doubts(unproven, instances)
        found.sort()
        return found

    def _next_in_turn(self, instance_ids: list[str]) -> list[str]:
        """Return some of these, others at each call: there may be thousands, and each is tried in dozens of ways."""
        if len(instance_ids) <= _TRIED_AT_ONCE:
            return instance_ids
        self._turn = (self._turn + _TRIED_AT_ONCE) % len(instance_ids)
        return (instance_ids[self._turn :] + instance_ids[: self._turn])[:_TRIED_AT_ONCE]

    def _prove(
        self, instance_id: str, workers: Sequence[Holdings], firsts: Sequence[int], schemes: Sequence[Scheme]
    ) -> Scheme | None:
        """Return the scheme by which an instance holds the first chunk, and remember it.

        Args:
            instance_id: the instance.
            workers: its workers.
            firsts: the first chunk's hash by each scheme.
            schemes: what to try.
        """
        for first, scheme in zip(firsts, schemes, strict=True):
            if any(worker.where(first) for worker in workers):
                self._proven[instance_id] = scheme
                if scheme != self._scheme:
                    extra = {"instance": instance_id, "found": str(scheme), "expected": str(self._scheme)}
                    log.warning("an instance hashes otherwise than expected", extra=extra)
                return scheme
        return None

    def _doubts(self, unproven: Sequence[str], instances: Mapping[str, Sequence[Holdings]]) -> list[str]:
        """Return what may be missing in an answer, a sentence for each reason."""
        doubts = []
        if strange := [instance_id for instance_id in unproven if instance_id not in self._proven]:
            doubts.append(
                f"{_some(strange)}: holds chunks, and no lookup has found any of them yet; if it served this prompt, its "
                f"PYTHONHASHSEED, pre_caching_hash_algorithm or chunk_size is not the expected one ({self._scheme})"
            )
        doubtful: dict[Trust, list[str]] = {}
        for instance_id, workers in instances.items():
            for worker in workers:
                if worker.trust is not Trust.EXACT:
                    doubtful.setdefault(worker.trust, []).append(instance_id)
        doubts.extend(f"{_some(names)}: {_REASONS[trust]}" for trust, names in sorted(doubtful.items()))
        return doubts


_REASONS = {
    Trust.UNKNOWN: "was there before this controller and has not told yet what it holds",
    Trust.GAP: "has lost reports on the way and has not told yet what it holds",
    Trust.FULL: "holds more than this controller may keep (max_chunks)",
}


def _match(instance_id: str, workers: Sequence[Holdings], hashes: "_Hashes", scheme: Scheme) -> Match | None:
    """Return what all workers of an instance hold, if that is anything."""
    chunks = min(worker.prefix(hashes.all(scheme)) for worker in workers)
    if not chunks:
        return None
    location = workers[0].where(hashes.all(scheme)[chunks - 1]) or ""
    return Match(instance_id, location, matched_tokens(chunks, len(hashes.tokens), scheme.chunk_size))


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


class _Hashes:
    """The chunk hashes of one prompt, which has at least one token; all of them are computed once for each scheme."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self._all: dict[Scheme, list[int]] = {}

    def all(self, scheme: Scheme) -> list[int]:
        if scheme not in self._all:
            self._all[scheme] = chunk_hashes(self.tokens, scheme)
        return self._all[scheme]

    def first(self, scheme: Scheme) -> int:
        return chunk_hashes(self.tokens[: scheme.chunk_size], scheme)[0]
