"""The cache keeps sequences apart and costs what is touched."""

import torch

from mint_stream.engine.kv_cache import SlottedCache, zeros_when_touched
from mint_stream.engine.prefixes import Reuse
from mint_stream.kernels import Segments
from mint_stream.model.passes import Pass, Span


def _pass(*spans: Span) -> Pass:
    rows = spans[-1].end
    return Pass((0,) * rows, spans, (), Segments((), rows))


def _cache() -> SlottedCache:
    return SlottedCache(slots=3, slot_tokens=8, dtype=torch.float32, device=torch.device("cpu"))


def test_rows_land_at_their_sequences_positions_and_nowhere_else() -> None:
    cache = _cache()
    cache.place(_pass(Span(0, 3, 2, slot=1), Span(3, 4, 0, slot=2)))
    keys = torch.arange(1.0, 17.0).view(1, 2, 4, 2)
    cache.update(keys, keys * 10, layer_idx=5)
    stored_keys, stored_values = cache.layer(5)
    assert torch.equal(stored_keys[1, :, 2:5], keys[0, :, :3]) and torch.equal(stored_values[2, :, 0], keys[0, :, 3] * 10)
    stored_keys[1, :, 2:5] = stored_keys[2, :, 0] = 0.0
    assert not stored_keys.any()


def test_a_slot_given_back_for_good_is_zero_and_taken_first() -> None:
    cache = _cache()
    assert [cache.take().slot for _ in range(3)] == [0, 1, 2] and cache.free_slots == 0
    cache.place(_pass(Span(0, 8, 0, slot=1)))
    cache.update(torch.full((1, 1, 8, 2), torch.nan), torch.ones(1, 1, 8, 3), layer_idx=0)
    cache.advance(1, 8)
    cache.release(2)
    cache.release(1)
    assert cache.take().slot == 1 and not cache.layer(0)[0].any() and not cache.layer(0)[1].any()


def test_what_another_slot_holds_of_the_same_beginning_is_copied() -> None:
    cache = _cache()
    assert cache.take("a", [1, 2, 3, 4]) == Reuse(0, 0)
    cache.place(_pass(Span(0, 4, 0, slot=0)))
    keys = torch.arange(1.0, 9.0).view(1, 1, 4, 2)
    cache.update(keys, -keys, layer_idx=0)
    cache.advance(0, 4)
    assert cache.take("a", [1, 2, 3, 9, 9]) == Reuse(1, 3)
    stored_keys, stored_values = cache.layer(0)
    assert torch.equal(stored_keys[1, :, :3], keys[0, :, :3]) and torch.equal(stored_values[1, :, :3], -keys[0, :, :3])
    assert not stored_keys[1, :, 3:].any()
    assert cache.take("a", [1, 2, 3, 4], reuse=False) == Reuse(2, 0)


def test_a_free_slot_with_the_beginning_is_taken_itself() -> None:
    cache = _cache()
    for tokens in ([1, 2], [3, 4, 5]):
        found = cache.take(None, tokens)
        cache.place(_pass(Span(0, len(tokens), 0, slot=found.slot)))
        cache.update(torch.ones(1, 1, len(tokens), 2), torch.ones(1, 1, len(tokens), 2), layer_idx=0)
        cache.advance(found.slot, len(tokens))
    cache.release(0, keep=True)
    cache.release(1, keep=True)
    assert cache.take(None, [3, 4, 5, 6]) == Reuse(1, 3)


def test_untouched_places_are_zeros_of_any_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        zeros = zeros_when_touched((4, 3), dtype)
        assert zeros.dtype == dtype and zeros.shape == (4, 3) and not zeros.any()
