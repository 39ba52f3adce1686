"""Tests for the feed: what the index knows after batches in order, out of order, lost, late or from somebody else."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.router.chooser import Chooser
from components.router.cost import CostSettings, Prompt
from components.router.feed import Feed
from components.router.policies import make_policy
from components.router.policies.policy import PolicySettings
from components.wire.kv import KvBatch, KvChange, KvCleared, KvRemoved, KvStored, SnapshotChunk, Tier
from components.wire.process import WorkerStatus
from components.wire.routing import Trust

PROMPT = list(range(100, 120))


class Scene:
    """A feed that listens to some workers, and what they say.

    Attributes:
        now_s: the time.
        asked: snapshot ids asked for, by worker, newest last.
    """

    def __init__(self, *workers: str, max_pairs: int = 1_000_000) -> None:
        policy = make_policy("kv", PolicySettings(), random.Random(1))
        self.chooser = Chooser(policy, 32, CostSettings(), max_pairs)
        self.feed = Feed(self.chooser, "router-0")
        self.now_s = 100.0
        self.asked: dict[str, list[str]] = {}
        for worker in workers:
            self.appear(worker)

    def appear(self, worker: str, incarnation: str = "first", store: str = "lmcache-0", prefill: bool = False) -> None:
        """A worker tells its status."""
        status = WorkerStatus("demo", 65536, 32, 16384, store=store)
        if not prefill:
            self.chooser.fleet.update(worker, incarnation, status, self.now_s)
        self.feed.listen_to(worker, incarnation, self.now_s, store, only_shared=prefill)
        self.ask()

    def ask(self, after_s: float = 0.0) -> list[str]:
        """Time goes by; returns whose snapshot is asked for."""
        self.now_s += after_s
        asks = self.feed.due(self.now_s)
        for ask in asks:
            self.asked.setdefault(ask.worker, []).append(ask.snapshot_id)
        return [ask.worker for ask in asks]

    def batch(self, seq: int, *changes: KvChange, worker: str = "w0", incarnation: str = "first") -> None:
        """A batch comes."""
        self.feed.batch(KvBatch(worker, incarnation, seq, list(changes)), self.now_s)

    def chunk(self, seq: int, *runs: list[int], worker: str = "w0", **fields: object) -> None:
        """A part of the snapshot last asked for comes; the only one unless `fields` say otherwise."""
        snapshot_id = fields.pop("snapshot_id", self.asked.get(worker, [""])[-1])
        known = {"incarnation": "first", "index": 0, "last": True} | fields
        stored = [KvStored(run) for run in runs]
        self.feed.chunk(SnapshotChunk(snapshot_id, worker, seq=seq, stored=stored, **known), self.now_s)  # type: ignore[arg-type]

    def overlap(self, worker: str = "w0") -> int:
        """How much of PROMPT counts as held by a worker."""
        candidates = self.chooser.explain(Prompt(PROMPT, len(PROMPT) * 32 + 1), self.now_s).candidates
        return next(each.overlap_blocks for each in candidates if each.worker == worker)

    def trust(self, worker: str = "w0") -> Trust:
        """How far a worker is trusted."""
        return self.feed.trust(worker)


def test_a_newcomer_is_asked_for_all_it_holds() -> None:
    """Until the snapshot is here nothing is known; then all is."""
    scene = Scene("w0")
    assert len(scene.asked["w0"]) == 1
    assert (scene.trust(), scene.overlap(), scene.feed.why("w0")) == (Trust.FALLBACK, 0, "new here")
    scene.chunk(7, PROMPT[:12])
    assert (scene.trust(), scene.overlap(), scene.feed.why("w0")) == (Trust.EXACT, 12, "")
    scene.batch(8, KvStored(PROMPT[12:], PROMPT[11]))
    assert (scene.trust(), scene.overlap(), scene.feed.seq("w0")) == (Trust.EXACT, 20, 8)


def test_batches_that_come_before_the_snapshot_are_applied_after_it() -> None:
    """Those it holds already are left out, those after it go on top, in order."""
    scene = Scene("w0")
    scene.batch(6, KvStored(PROMPT[:5]))
    scene.batch(7, KvRemoved(PROMPT[:5]))
    scene.batch(8, KvStored(PROMPT[:3]))
    scene.batch(9, KvRemoved(PROMPT[2:3]))
    scene.chunk(7)
    assert (scene.trust(), scene.overlap(), scene.feed.seq("w0")) == (Trust.EXACT, 2, 9)


def test_a_snapshot_in_parts_counts_only_when_it_is_whole() -> None:
    """Half a snapshot would send requests to the wrong place."""
    scene = Scene("w0")
    scene.chunk(3, PROMPT[:10], index=0, last=False)
    assert (scene.trust(), scene.overlap()) == (Trust.FALLBACK, 0)
    scene.feed.chunk(
        SnapshotChunk(scene.asked["w0"][-1], "w0", "first", 3, 1, True, True, [KvStored(PROMPT[10:], PROMPT[9])]), 100.0
    )
    assert (scene.trust(), scene.overlap()) == (Trust.EXACT, 20)


@pytest.mark.parametrize("lost", [KvStored(PROMPT), KvRemoved(PROMPT)])
def test_a_lost_batch_ends_the_trust(lost: KvStored | KvRemoved) -> None:
    """Whatever it held: nothing counts until the new snapshot is here, and what came meanwhile goes on top."""
    scene = Scene("w0")
    scene.chunk(0, PROMPT[:10])
    scene.now_s += 10
    scene.batch(2, KvStored([7]))
    assert (scene.trust(), scene.overlap(), scene.feed.why("w0")) == (Trust.FALLBACK, 0, "events were lost")
    assert scene.ask() == ["w0"]
    scene.batch(3, KvStored(PROMPT[15:], PROMPT[14]))
    scene.chunk(2, PROMPT[:15])
    assert (scene.trust(), scene.overlap(), scene.feed.counts.gaps) == (Trust.EXACT, 20, 1)


def test_a_lost_last_batch_is_noticed_by_its_repeated_number() -> None:
    """An empty batch with the known number changes nothing, one with a higher number is a gap."""
    scene = Scene("w0")
    scene.chunk(4, PROMPT)
    scene.batch(4)
    assert scene.trust() is Trust.EXACT
    scene.batch(5)
    assert (scene.trust(), scene.overlap()) == (Trust.FALLBACK, 0)


def test_a_repeated_batch_changes_nothing() -> None:
    """Late and doubled batches are counted and left out."""
    scene = Scene("w0")
    scene.chunk(4, PROMPT)
    scene.batch(4, KvRemoved(PROMPT))
    scene.batch(3, KvRemoved(PROMPT))
    assert (scene.trust(), scene.overlap(), scene.feed.counts.ignored) == (Trust.EXACT, 20, 2)


def test_a_restarted_worker_holds_nothing() -> None:
    """By its status or by its first batch, whichever comes first; old snapshots of its old life do not count."""
    for by_status in (True, False):
        scene = Scene("w0")
        scene.chunk(4, PROMPT)
        scene.now_s += 5
        if by_status:
            scene.appear("w0", "second")
        else:
            scene.batch(1, KvStored(PROMPT[:2]), incarnation="second")
            scene.ask()
        assert (scene.trust(), scene.overlap(), scene.feed.counts.restarts) == (Trust.FALLBACK, 0, 1)
        scene.chunk(9, PROMPT, incarnation="first")
        assert scene.trust() is Trust.FALLBACK
        scene.chunk(1, PROMPT[:2], incarnation="second")
        assert (scene.trust(), scene.overlap()) == (Trust.EXACT, 2)


def test_a_lost_chunk_means_another_snapshot() -> None:
    """Neither is half a snapshot taken for a whole one, nor waited for in vain."""
    scene = Scene("w0")
    scene.chunk(3, PROMPT[:10], index=0, last=False)
    scene.chunk(3, PROMPT[15:], index=2, last=True)
    assert (scene.trust(), scene.feed.counts.lost_snapshots) == (Trust.FALLBACK, 1)
    assert scene.ask(0.1) == []
    assert scene.ask(1.0) == ["w0"]
    scene.chunk(3, PROMPT)
    assert (scene.trust(), scene.overlap()) == (Trust.EXACT, 20)


def test_a_snapshot_whose_end_is_lost_is_asked_for_again() -> None:
    """The last chunk may be the lost one; what the half told is dropped."""
    scene = Scene("w0")
    scene.chunk(3, PROMPT, index=0, last=False)
    assert scene.ask(0.9) == []
    assert scene.ask(0.2) == ["w0"]
    scene.chunk(4, PROMPT[:1])
    assert (scene.overlap(), scene.feed.counts.lost_snapshots) == (1, 1)


def test_a_worker_that_does_not_answer_is_asked_ever_less_often() -> None:
    """An engine without events must not be asked ten times a second for ever."""
    scene = Scene("w0")
    waits = []
    for _ in range(8):
        waited = 0.0
        while not scene.ask(0.5):
            waited += 0.5
        waits.append(waited + 0.5)
    assert waits == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0]


def test_gap_after_gap_makes_no_storm_of_snapshots() -> None:
    """Two a second at most for each worker."""
    scene = Scene("w0")
    asked = 0
    for number in range(100):
        scene.chunk(10 * number)
        scene.batch(10 * number + 5, KvStored([1]))
        asked += len(scene.ask(0.01))
    assert asked <= 3


def test_an_incomplete_snapshot_degrades_the_trust() -> None:
    """What is known is a lower bound; it still counts."""
    scene = Scene("w0")
    scene.chunk(3, PROMPT[:8], complete=False)
    assert (scene.trust(), scene.overlap()) == (Trust.DEGRADED, 8)
    assert "missed" in scene.feed.why("w0")


def test_a_full_index_degrades_the_trust() -> None:
    """Refused blocks are missed overlap, and nobody would know otherwise."""
    scene = Scene("w0", max_pairs=10)
    scene.chunk(3, PROMPT)
    assert (scene.trust(), scene.overlap(), scene.feed.why("w0")) == (Trust.DEGRADED, 10, "the index is full")


def test_strangers_are_not_listened_to() -> None:
    """Somebody who is no worker of this graph can fill no memory."""
    scene = Scene("w0")
    for number in range(100):
        scene.batch(number, KvStored([number]), worker=f"stranger-{number}")
        scene.chunk(1, [number], worker=f"stranger-{number}", snapshot_id="x")
    assert scene.chooser.device.stats().pairs == 0
    assert scene.feed.counts.ignored == 200
    assert scene.ask(60) == ["w0"]


def test_anothers_snapshot_is_not_taken() -> None:
    """A chunk of a snapshot that was not asked for, or is given up, changes nothing."""
    scene = Scene("w0")
    scene.ask(1.0)
    old, new = scene.asked["w0"]
    scene.chunk(3, PROMPT, snapshot_id=old)
    assert scene.trust() is Trust.FALLBACK
    scene.chunk(3, PROMPT[:2], snapshot_id=new)
    assert scene.overlap() == 2


def test_a_reset_drops_what_is_known_and_asks_anew() -> None:
    """For a person who does not trust the index."""
    scene = Scene("w0", "w1")
    scene.chunk(3, PROMPT)
    scene.now_s += 1
    scene.feed.reset("w0", "it was reset", scene.now_s)
    assert (scene.trust(), scene.overlap(), scene.feed.why("w0")) == (Trust.FALLBACK, 0, "it was reset")
    assert scene.ask() == ["w0", "w1"]
    with pytest.raises(KeyError):
        scene.feed.reset("nobody", "it was reset", scene.now_s)


def test_a_forgotten_worker_is_a_stranger() -> None:
    """Its late batches change nothing; when it comes back it is a newcomer."""
    scene = Scene("w0")
    scene.chunk(3, PROMPT)
    scene.feed.forget("w0")
    scene.chooser.forget("w0")
    scene.batch(4, KvStored(PROMPT))
    assert scene.chooser.device.overlap(PROMPT) == {}
    scene.appear("w0")
    assert (scene.trust(), scene.overlap()) == (Trust.FALLBACK, 0)


def test_a_flood_while_a_snapshot_is_awaited_is_dropped_and_made_good() -> None:
    """Memory is bounded; the missing numbers are a gap, and the next snapshot holds it all."""
    scene = Scene("w0")
    for seq in range(1, 30):
        scene.batch(seq, KvStored(list(range(seq * 100_000, (seq + 1) * 100_000))))
    scene.batch(30, KvStored(PROMPT))
    scene.chunk(3)
    assert scene.trust() is Trust.FALLBACK
    scene.ask(1.0)
    scene.chunk(30, PROMPT)
    assert (scene.trust(), scene.overlap()) == (Trust.EXACT, 20)


def test_tiers_are_kept_apart() -> None:
    """What lies in host memory or on disk must be loaded; what is shared, anybody can load."""
    scene = Scene("w0", "w1")
    scene.chunk(0)
    scene.chunk(0, worker="w1")
    scene.batch(1, KvStored(PROMPT[:4]), KvStored(PROMPT[:8], tier=Tier.HOST), KvStored(PROMPT[:6], tier=Tier.SHARED))
    w0, w1 = scene.chooser.explain(Prompt(PROMPT, 641), scene.now_s).candidates
    assert (w0.overlap_blocks, w0.fetch_blocks) == (4, 4)
    assert (w1.overlap_blocks, w1.fetch_blocks) == (0, 6)
    scene.batch(2, KvCleared())
    w0, _ = scene.chooser.explain(Prompt(PROMPT, 641), scene.now_s).candidates
    assert (w0.overlap_blocks, w0.fetch_blocks) == (0, 6)


def shared(scene: Scene) -> dict[str, int]:
    """How much of the prompt each store holds."""
    return scene.chooser.shared.overlap(PROMPT)


def test_stores_are_kept_apart() -> None:
    """Whoever tells of a store, its workers can load it, no others; a worker without a store has nothing to tell of."""
    scene = Scene("w0")
    scene.appear("w1", store="lmcache-b-0")
    scene.appear("w2", store="")
    for worker, blocks in (("w0", 4), ("w1", 8), ("w2", 12)):
        scene.chunk(0, worker=worker)
        scene.batch(1, KvStored(PROMPT[:blocks], tier=Tier.SHARED), worker=worker)
    assert shared(scene) == {"lmcache-0": 4, "lmcache-b-0": 8}
    candidates = scene.chooser.explain(Prompt(PROMPT, 641), scene.now_s).candidates
    assert [each.fetch_blocks for each in candidates] == [4, 8, 0]


def test_of_a_prefill_worker_only_its_store_counts() -> None:
    """It is no candidate; what it put into LMCache others can load, also when it is gone."""
    scene = Scene("w0")
    scene.chunk(0)
    scene.appear("p0", prefill=True)
    scene.chunk(0, worker="p0")
    scene.batch(1, KvStored(PROMPT), KvStored(PROMPT[:8], tier=Tier.SHARED), KvRemoved(PROMPT[:2]), worker="p0")
    assert scene.feed.trust("p0") is Trust.EXACT
    assert (scene.chooser.device.overlap(PROMPT), shared(scene)) == ({}, {"lmcache-0": 8})
    scene.batch(2, KvRemoved(PROMPT[6:8], Tier.SHARED), worker="p0")
    scene.feed.forget("p0")
    scene.chooser.forget("p0")
    (candidate,) = scene.chooser.explain(Prompt(PROMPT, 641), scene.now_s).candidates
    assert (candidate.worker, candidate.fetch_blocks) == ("w0", 6)


def test_what_a_lost_store_held_does_not_come_back() -> None:
    """Its workers withdraw what they told; a snapshot that was under way is followed by that."""
    scene = Scene("w0")
    scene.chunk(0)
    scene.batch(1, KvStored(PROMPT, tier=Tier.SHARED))
    scene.batch(3, KvStored([1], tier=Tier.SHARED))
    scene.feed.store_lost("lmcache-0")
    assert shared(scene) == {}
    scene.ask(after_s=1.0)
    stale = [KvStored(PROMPT, tier=Tier.SHARED)]
    scene.batch(4, KvRemoved(PROMPT, Tier.SHARED))
    scene.feed.chunk(SnapshotChunk(scene.asked["w0"][-1], "w0", "first", 3, 0, last=True, stored=stale), scene.now_s)
    assert (shared(scene), scene.feed.trust("w0")) == ({}, Trust.EXACT)
    scene.batch(5, KvStored(PROMPT[:3], tier=Tier.SHARED))
    assert shared(scene) == {"lmcache-0": 3}


Event = st.sampled_from(["send", "lose", "repeat", "double", "restart", "chunks", "lose chunk", "pass"])


@given(st.lists(Event, max_size=60), st.integers(0, 2**32))
def test_whatever_is_lost_the_index_is_exact_or_not_trusted(events: list[str], seed: int) -> None:
    """Against a worker whose messages are lost, doubled and late at random: trusted means equal to what it holds."""
    rng = random.Random(seed)
    scene = Scene("w0")
    held: list[int] = []
    life, seq = 0, 0

    def change() -> KvChange:
        nonlocal held
        if held and rng.random() < 0.4:
            cut = rng.randrange(len(held))
            gone, held = held[cut:], held[:cut]
            return KvRemoved(gone)
        first = len(held)
        held = PROMPT[: rng.randint(first, len(PROMPT))]
        return KvStored(held[first:], PROMPT[first - 1] if first else None) if held[first:] else KvStored([])

    for event in [*events, "chunks", "pass", "chunks"]:
        incarnation = str(life) if life else "first"
        if event in ("send", "lose", "double"):
            seq += 1
            told = change()
            for _ in range({"send": 1, "lose": 0, "double": 2}[event]):
                scene.batch(seq, told, incarnation=incarnation)
        elif event == "repeat":
            scene.batch(seq, incarnation=incarnation)
        elif event == "restart":
            life, seq, held = life + 1, 0, []
            scene.appear("w0", str(life))
        elif event in ("chunks", "lose chunk") and scene.trust() is Trust.FALLBACK:
            scene.batch(seq, incarnation=incarnation)
            half = len(held) // 2
            scene.chunk(seq, held[:half], index=0, last=False, incarnation=incarnation)
            if event == "chunks":
                rest = [KvStored(held[half:], held[half - 1] if half else None)] if held[half:] else []
                chunk = SnapshotChunk(scene.asked["w0"][-1], "w0", incarnation, seq, 1, True, True, rest)
                scene.feed.chunk(chunk, scene.now_s)
        else:
            scene.batch(seq, incarnation=incarnation)
            scene.ask(20.0)
        in_step = scene.feed.seq("w0")
        assert scene.overlap() == 0 or scene.trust() is Trust.EXACT
        if in_step == seq and scene.trust() is Trust.EXACT:
            assert scene.overlap() == len(held)
    assert scene.trust() is Trust.EXACT
