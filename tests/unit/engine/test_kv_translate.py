"""An engine's KV events become changes in our hashes, whatever its own hashes, groups, copies and losses."""

from collections import Counter

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from components.engine.kv_shelves import EngineHash
from components.engine.kv_translate import EngineCleared, EngineEvent, EngineRemoved, EngineStored, KvTranslator
from components.engine.protocol import KvUpdate
from components.wire.block_hash import block_hashes, root_hash
from components.wire.kv import KvChange, KvCleared, KvRemoved, KvStored, Tier

SIZE = 4
PROMPT = list(range(100, 140))
OURS = block_hashes(PROMPT, SIZE, root_hash("m"))


def told(*events: EngineEvent, translator: KvTranslator | None = None) -> KvUpdate:
    """Return what a translator says of `events`."""
    translator = translator or KvTranslator("m", SIZE)
    translator.apply(events)
    update = translator.take()
    assert update is not None
    assert translator.take() is None
    return update


def stored(first: int, last: int, *, tier: Tier = Tier.DEVICE, group: int = 0) -> EngineStored:
    """Return the event of the prompt's blocks `first` to `last`; the engine calls them by a name and a number."""
    parent: EngineHash | None = f"engine-{first - 1}".encode() if first else None
    hashes: list[EngineHash] = [f"engine-{index}".encode() for index in range(first, last + 1)]
    tokens = PROMPT[first * SIZE : (last + 1) * SIZE]
    return EngineStored(hashes, parent, tokens, SIZE, tier=tier, group=group)


def removed(*blocks: int, tier: Tier = Tier.DEVICE, group: int = 0) -> EngineRemoved:
    """Return the event of these blocks' removal."""
    return EngineRemoved([f"engine-{block}".encode() for block in blocks], tier, group)


def test_blocks_get_our_hashes() -> None:
    """Runs are chained across events by the engine's own parent, and joined."""
    update = told(stored(0, 2), stored(3, 3), stored(1, 1))
    assert update == KvUpdate([KvStored(OURS[:4], None)], events=3)
    assert told(stored(0, 1)).changes == [KvStored(OURS[:2], None)]


def test_a_branch_names_its_parent() -> None:
    """A run that goes off in the middle of another one begins with the parent's hash, ours."""
    branch = EngineStored([7, 8], b"engine-1", [1, 2, 3, 4, 5, 6, 7, 8], SIZE)
    other = block_hashes([*PROMPT[: 2 * SIZE], 1, 2, 3, 4, 5, 6, 7, 8], SIZE, root_hash("m"))
    assert told(stored(0, 3), branch).changes == [KvStored(OURS[:4], None), KvStored(other[2:], OURS[1])]


@pytest.mark.parametrize(("adapter", "salt"), [("lora", None), (None, "tenant"), ("lora", "tenant")])
def test_adapter_and_salt_are_part_of_the_hash(adapter: str | None, salt: str | None) -> None:
    """They count where a prompt begins, and are inherited from there."""
    tokens = PROMPT[: 2 * SIZE]
    begin = EngineStored([1], None, tokens[:SIZE], SIZE, adapter, salt)
    go_on = EngineStored([2], 1, tokens[SIZE:], SIZE, adapter)
    assert told(begin, go_on).changes == [KvStored(block_hashes(tokens, SIZE, root_hash("m", adapter, salt)), None)]


def test_removal_in_the_middle_of_a_chain() -> None:
    """The block goes, its children stay; stored again it is told again."""
    translator = KvTranslator("m", SIZE)
    assert told(stored(0, 3), removed(1), translator=translator).changes == [KvStored(OURS[:4], None), KvRemoved([OURS[1]])]
    assert told(stored(1, 1), translator=translator).changes == [KvStored([OURS[1]], OURS[0])]


def test_removals_are_joined() -> None:
    """One event a block is what vLLM sends."""
    update = told(stored(0, 3), removed(3), removed(2), removed(9), removed(1))
    assert update.changes[1:] == [KvRemoved([OURS[3], OURS[2], OURS[1]])]
    assert update.events == 5


def test_a_block_held_twice_is_gone_when_both_copies_are() -> None:
    """Two sequences computed the same prompt at the same time."""
    translator = KvTranslator("m", SIZE)
    assert told(stored(0, 2), stored(0, 2), stored(1, 1), translator=translator).changes == [KvStored(OURS[:3], None)]
    assert told(removed(0, 1, 1), translator=translator).changes == []
    assert told(removed(1, 0), translator=translator).changes == [KvRemoved([OURS[1], OURS[0]])]


def test_a_block_counts_when_all_groups_hold_it() -> None:
    """And no longer as soon as one group drops it."""
    translator = KvTranslator("m", SIZE)
    told(stored(0, 0), stored(0, 0, group=1), translator=translator)
    assert told(stored(1, 2), translator=translator).changes == []
    assert told(stored(1, 2, group=1), translator=translator).changes == [KvStored(OURS[1:3], OURS[0])]
    assert told(removed(2), translator=translator).changes == [KvRemoved([OURS[2]])]
    assert told(removed(2, group=1), removed(2, group=5), translator=translator).changes == []


def test_tiers_are_kept_apart() -> None:
    """A block leaves one tier and stays on another; clearing the engine's cache leaves the others alone."""
    translator = KvTranslator("m", SIZE)
    update = told(stored(0, 1), stored(0, 1, tier=Tier.SHARED), removed(1), translator=translator)
    assert update.changes == [KvStored(OURS[:2], None), KvStored(OURS[:2], None, Tier.SHARED), KvRemoved([OURS[1]])]
    assert told(EngineCleared(), translator=translator).changes == [KvRemoved([OURS[0]])]
    assert told(removed(0, tier=Tier.SHARED), translator=translator).changes == [KvRemoved([OURS[0]], Tier.SHARED)]


def test_what_lmcache_stores_again_is_told_again() -> None:
    """It holds nothing twice: the first copy was evicted, or went with the server, and nobody told. One removal ends it."""
    translator, tier = KvTranslator("m", SIZE), Tier.SHARED
    again = [KvStored(OURS[:3], None, tier)]
    assert told(stored(0, 2, tier=tier), translator=translator).changes == again
    assert told(stored(0, 2, tier=tier), translator=translator).changes == again
    gone = told(removed(2, tier=tier), translator=translator)
    assert gone.changes == [KvRemoved([OURS[2]], tier)]
    assert told(removed(2, tier=tier), translator=translator).changes == []
    assert told(stored(2, 3, tier=tier), translator=translator).changes == [KvStored(OURS[2:4], OURS[1], tier)]


def test_old_chunks_of_lmcache_make_room() -> None:
    """A sixteenth at once, and at most as many as said; chunks stored again are young again."""
    translator, tier = KvTranslator("m", SIZE, max_chunks=8), Tier.SHARED
    told(stored(0, 7, tier=tier), stored(0, 0, tier=tier), translator=translator)
    update = told(stored(8, 8, tier=tier), translator=translator)
    assert update.changes == [KvStored([OURS[8]], OURS[7], tier), KvRemoved(OURS[1:3], tier)]
    assert told(stored(2, 2, tier=tier), translator=translator).changes == [KvStored([OURS[2]], OURS[1], tier)]


def test_what_is_shared_is_withdrawn_even_if_everything_is_cleared_next() -> None:
    """Clearing says nothing of it."""
    translator = KvTranslator("m", SIZE)
    told(stored(0, 1), stored(0, 1, tier=Tier.SHARED), translator=translator)
    translator.apply([removed(0, 1, tier=Tier.SHARED)])
    translator.lose()
    update = translator.take()
    assert update is not None
    assert update.changes == [KvRemoved(OURS[:2], Tier.SHARED), KvCleared()]


def test_larger_blocks_are_several_of_ours() -> None:
    """A store whose blocks are eight tokens: each is two of ours, and both go with it."""
    chunks = [EngineStored([n], n - 1 or None, PROMPT[n * 8 - 8 : n * 8], 8, tier=Tier.HOST) for n in (1, 2, 3)]
    update = told(*chunks, EngineRemoved([2], Tier.HOST))
    assert update.changes == [KvStored(OURS[:6], None, Tier.HOST), KvRemoved(OURS[2:4], Tier.HOST)]


def test_larger_blocks_are_withdrawn_whole() -> None:
    """All of ours that lie in them, the first ones too; a second copy of one keeps it until it goes."""
    chunks = [EngineStored([n], n - 1 or None, PROMPT[n * 8 - 8 : n * 8], 8) for n in (1, 2, 2)]
    assert told(*chunks, EngineRemoved([1])).changes == [KvStored(OURS[:4], None), KvRemoved(OURS[:2])]
    assert told(*chunks, EngineRemoved([2])).changes == [KvStored(OURS[:4], None)]
    translator = KvTranslator("m", SIZE)
    told(*(msgspec.structs.replace(chunk, tier=Tier.SHARED) for chunk in chunks[:2]), translator=translator)
    translator.lose()
    update = translator.take()
    assert update is not None
    withdrawn = update.changes[1]
    assert isinstance(withdrawn, KvRemoved)
    assert (sorted(withdrawn.blocks), withdrawn.tier) == (sorted(OURS[:4]), Tier.SHARED)


def test_partial_blocks_are_ignored() -> None:
    """A block that is no whole number of ours, and a run whose tokens do not fit its blocks."""
    partial = EngineStored([1], None, [1, 2, 3], 3)
    masked = EngineStored([1], None, [1] * 8, 4)
    assert told(partial, masked) == KvUpdate([], events=2)


def test_unknown_parents_are_counted() -> None:
    """What cannot be chained is left out."""
    assert told(stored(2, 4)) == KvUpdate([], events=1, orphan_blocks=3)


def test_clearing() -> None:
    """What came before within an update need not be told."""
    assert told(stored(0, 3), EngineCleared(), stored(0, 0)).changes == [KvCleared(), KvStored(OURS[:1], None)]


def test_a_loss_withdraws_everything() -> None:
    """From then on less may be told than is held, never more; an empty cache ends the doubt."""
    translator = KvTranslator("m", SIZE)
    told(stored(0, 3), stored(0, 0, tier=Tier.SHARED), translator=translator)
    translator.lose()
    lost = told(stored(4, 4), removed(0), stored(0, 0), translator=translator)
    shared = KvRemoved([OURS[0]], Tier.SHARED)
    assert lost == KvUpdate([KvCleared(), shared, KvStored(OURS[:1], None)], 3, orphan_blocks=1, gaps=1, complete=False)
    assert not told(stored(1, 1), translator=translator).complete
    assert told(EngineCleared(), translator=translator) == KvUpdate([KvCleared()], events=1)


def test_a_restart_begins_anew() -> None:
    """The old engine's blocks go; nothing is in doubt."""
    translator = KvTranslator("m", SIZE)
    told(stored(0, 3), translator=translator)
    translator.restart()
    update = told(stored(0, 0), stored(3, 3), translator=translator)
    assert update == KvUpdate([KvCleared(), KvStored(OURS[:1], None)], 2, orphan_blocks=1)


def test_lmcaches_server_has_the_last_word() -> None:
    """What it evicted is withdrawn, what it stored anew is told again, whoever was quicker; strangers say nothing."""
    chunks: list[EngineEvent] = [
        EngineStored([n], n - 1 or None, PROMPT[n * 8 - 8 : n * 8], 8, tier=Tier.SHARED) for n in (1, 2, 3)
    ]
    translator = KvTranslator("m", SIZE)
    told(*chunks, stored(0, 9), translator=translator)

    def server(held: list[int], gone: list[int]) -> list[KvChange]:
        translator.shared_changed(held, gone)
        update = translator.take()
        return update.changes if update else []

    assert server([], [2, 99]) == [KvRemoved(OURS[2:4], Tier.SHARED)]
    assert server([], [2]) == []
    assert server([2, 98], []) == [KvStored(OURS[2:4], OURS[1], Tier.SHARED)]
    assert server([2], []) == []
    assert server([], [1, 2, 3]) == [KvRemoved(OURS[:6], Tier.SHARED)]
    assert told(chunks[1], translator=translator).changes == []  # it had no room, or has not spoken yet
    assert server([2], []) == [KvStored(OURS[2:4], OURS[1], Tier.SHARED)]
    assert server([1, 4], [3]) == [KvStored(OURS[:2], None, Tier.SHARED)]
    fourth = EngineStored([4], 3, PROMPT[24:32], 8, tier=Tier.SHARED)
    assert told(fourth, translator=translator).changes == [KvStored(OURS[6:8], OURS[5], Tier.SHARED)]
    translator.shared_lost()
    assert told(chunks[2], translator=translator).changes[-1] == KvStored(OURS[4:6], OURS[3], Tier.SHARED)


def test_prompts_are_learned_where_an_engine_does_not_tell_what_it_stores() -> None:
    """The server's word alone says what is held; a prompt learned again, or longer, changes nothing that is."""
    translator = KvTranslator("m", SIZE)
    translator.learn([1, 2, 3], PROMPT[:24])
    assert translator.take() is None

    def server(held: list[int], gone: list[int]) -> list[KvChange]:
        translator.shared_changed(held, gone)
        update = translator.take()
        return update.changes if update else []

    assert server([1, 2], [3]) == [KvStored(OURS[:4], None, Tier.SHARED)]
    for chunks in ([1, 2, 3], [1, 2, 3, 4]):
        translator.learn(chunks, PROMPT[: 8 * len(chunks)])
    assert server([3, 4], [1]) == [KvRemoved(OURS[:2], Tier.SHARED), KvStored(OURS[4:8], OURS[3], Tier.SHARED)]
    translator.shared_lost()
    assert server([1], []) == [KvRemoved(OURS[2:8], Tier.SHARED), KvStored(OURS[:2], None, Tier.SHARED)]


def test_chunks_that_are_gone_are_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last ones."""
    monkeypatch.setattr("components.engine.kv_shelves._MAX_GONE", 2)
    translator = KvTranslator("m", SIZE)
    told(stored(0, 4, tier=Tier.SHARED), translator=translator)
    names = [f"engine-{index}".encode() for index in range(5)]
    translator.shared_changed([], names)
    translator.shared_changed(names, [])
    update = translator.take()
    assert update is not None
    assert update.changes[-1] == KvStored(OURS[3:5], OURS[2], Tier.SHARED)


def test_nonsense_is_refused() -> None:
    """Token ids that cannot be are an error of the batch."""
    with pytest.raises(ValueError):
        told(EngineStored([1], None, [-1, 2, 3, 4], SIZE))


steps = st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 4), st.integers(0, 1)), max_size=60)


@settings(deadline=None)
@given(steps, st.integers(1, 2))
def test_equals_a_recount(asked: list[tuple[bool, int, int, int]], groups: int) -> None:
    """Whatever is stored and removed in whatever group, exactly the blocks that all groups hold are told, each once."""
    translator, held = KvTranslator("m", SIZE), set[int]()
    copies: list[Counter[int]] = [Counter() for _ in range(groups)]
    for group in range(groups):  # so that all groups are known
        translator.apply([stored(9, 9, group=group), stored(0, 0, group=group), removed(0, group=group)])
    translator.take()
    for store, first, more, wanted_group in asked:
        group = wanted_group % groups
        mine = copies[group]
        if store:
            if first and not mine[first - 1]:
                continue
            translator.apply([stored(first, first + more, group=group)])
            mine.update(range(first, first + more + 1))
        elif mine[first]:
            translator.apply([removed(first, group=group)])
            mine[first] -= 1
        update = translator.take()
        for change in update.changes if update else []:
            assert not isinstance(change, KvCleared)
            if isinstance(change, KvStored):
                assert held.isdisjoint(change.blocks)
                held.update(change.blocks)
            else:
                assert held.issuperset(change.blocks)
                held.difference_update(change.blocks)
        assert held == {OURS[block] for block in range(10) if all(each[block] for each in copies)}
