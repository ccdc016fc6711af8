"""Pages hold what slots would, found through the table; only memory that is there is promised."""

import pytest
import torch

from mint_stream.engine.paged_cache import PAGE_TOKENS, PagedCache
from mint_stream.engine.prefixes import Reuse
from mint_stream.errors import InvalidSettings
from mint_stream.kernels import Segments
from mint_stream.model.passes import Pass, Span


def _pass(*spans: Span) -> Pass:
    rows = spans[-1].end
    return Pass((0,) * rows, spans, (), Segments((), rows))


def _cache(slots: int = 3, slot_tokens: int = 40) -> PagedCache:
    return PagedCache(slots, slot_tokens, torch.float32, torch.device("cpu"))


def _written(cache: PagedCache, pass_: Pass, seed: int = 0) -> torch.Tensor:
    """Random keys [1, 2, rows, 4]; values are ten times them, in their first three numbers."""
    keys = torch.randn(1, 2, len(pass_.tokens), 4, generator=torch.Generator().manual_seed(seed))
    cache.place(pass_)
    cache.update(keys, keys[..., :3] * 10, layer_idx=5)
    return keys


def test_rows_are_found_through_the_table_and_gathered_in_the_order_of_their_sequences() -> None:
    cache = _cache()
    assert [cache.take(tokens=[0] * 20), cache.take(tokens=[0] * 3)] == [Reuse(0, 0), Reuse(1, 0)]
    first = _written(cache, _pass(Span(0, 17, 0, slot=0), Span(17, 19, 0, slot=1)))
    both = _pass(Span(0, 3, 17, slot=0), Span(3, 4, 2, slot=1))
    second = _written(cache, both, seed=1)
    expected = torch.cat([first[:, :, :17], second[:, :, :3], first[:, :, 17:], second[:, :, 3:]], dim=2)
    keys, values = cache.gathered(5, both)
    assert torch.equal(keys, expected) and torch.equal(values, expected[..., :3] * 10)
    stored = cache.layer(5)
    for slot, span in ((0, slice(0, 20)), (1, slice(20, 23))):
        mine = stored.keys[stored.table[slot].long()].flatten(0, 1)[: span.stop - span.start]
        assert torch.equal(mine.transpose(0, 1), expected[0, :, span])


def test_rows_that_fill_a_pass_up_are_written_to_nobodys_page() -> None:
    cache = _cache()
    cache.take(tokens=[0])
    _written(cache, _pass(Span(0, 1, 0, slot=0), Span(1, 2, 0, slot=cache.nobodys_slot), Span(2, 3, 0, slot=cache.nobodys_slot)))
    stored = cache.layer(5)
    assert stored.table[0, 0] != 0 and not stored.table[cache.nobodys_slot].any()
    assert stored.keys[0, 0].any() and not stored.keys[0, 1:].any()


def test_a_beginning_of_full_pages_is_shared_and_copied_nowhere() -> None:
    cache = _cache()
    tokens = list(range(35))
    cache.take("a", tokens)
    _written(cache, _pass(Span(0, 35, 0, slot=0)))
    cache.advance(0, 35)
    assert cache.take("a", [*tokens[:33], 99, 99]) == Reuse(1, 2 * PAGE_TOKENS)
    cache.place(_pass(Span(0, 1, 34, slot=1)))
    table = cache.layer(5).table
    assert torch.equal(table[0, :2], table[1, :2]) and table[0, 2] != table[1, 2]
    assert cache.take("b", tokens) == Reuse(2, 0), "another revision computes its own"


def test_a_sequence_waits_for_memory_and_a_short_one_needs_little_of_it() -> None:
    cache = _cache(slots=3, slot_tokens=40)
    cache.limit(4)
    assert cache.take(tokens=[1], length=40) == Reuse(0, 0) and cache.spare_pages == 1
    assert cache.take(tokens=[1], length=17) is None and cache.take(tokens=[1], length=16) == Reuse(1, 0)
    cache.release(0)
    assert cache.free_slots == 2 and cache.spare_pages == 3


def test_memory_for_less_than_one_sequence_is_refused_by_the_name_of_the_setting() -> None:
    with pytest.raises(InvalidSettings, match="room for 32 tokens, and one sequence may have 40: raise MINT_SERVING__KV_CACHE_BYTES"):
        _cache().limit(2)


def test_the_bytes_of_a_page_are_those_of_all_layers() -> None:
    cache = _cache()
    cache.take()
    _written(cache, _pass(Span(0, 1, 0, slot=0)))
    assert cache.page_bytes == PAGE_TOKENS * 2 * (4 + 3) * 4


def test_states_are_kept_by_slot_and_allow_no_reuse() -> None:
    cache = _cache()
    with pytest.raises(ValueError, match="nothing was ever kept"):
        cache.state("c")
    assert cache.state("c", like=torch.ones(2, 5)).shape == (3, 5)
    tokens = list(range(35))
    cache.take(None, tokens)
    _written(cache, _pass(Span(0, 35, 0, slot=0)))
    cache.advance(0, 35)
    assert cache.take(None, tokens) == Reuse(1, 0)
