"""The laws of the free list, over any order of taking and giving back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.cache.arena import FreeList, slot_bytes

SIZE = 64
steps = st.lists(st.tuples(st.booleans(), st.integers(1, SIZE)), max_size=60)


@settings(deadline=None)
@given(steps)
def test_slots_never_overlap_holes_are_joined_and_none_is_refused_while_a_hole_is_large_enough(history: list[tuple[bool, int]]) -> None:
    free, slots = FreeList(SIZE), dict[int, int]()
    for take, number in history:
        if take:
            held = free.holes
            offset = free.take(number)
            if offset is None:
                assert all(length < number for _, length in held)
                assert free.free_bytes < (len(slots) + 1) * number
            else:
                assert min(length for start, length in held if length >= number) == dict(held)[offset], "the hole that fits best"
                slots[offset] = number
        elif slots:
            offset = sorted(slots)[number % len(slots)]
            free.give_back(offset)
            del slots[offset]
        stretches = sorted([*slots.items(), *free.holes])
        assert [start for start, _ in stretches] == [0, *(start + length for start, length in stretches)][:-1]
        assert sum(length for _, length in stretches) == SIZE, "every byte is in a slot or a hole, and in one only"
        assert all(start + length != follows for (start, length), (follows, _) in zip(free.holes, free.holes[1:], strict=False))
        assert free.free_bytes == SIZE - sum(slots.values()) and free.largest_hole == max((n for _, n in free.holes), default=0)


@given(st.permutations(range(8)))
def test_given_back_in_any_order_an_arena_is_one_hole_again(order: list[int]) -> None:
    free = FreeList(SIZE)
    offsets = [free.take(8) for _ in range(8)]
    assert free.take(1) is None
    for number in order:
        free.give_back(offsets[number])
    assert free.holes == ((0, SIZE),)


def test_a_slot_is_given_back_once() -> None:
    free = FreeList(SIZE)
    offset = free.take(8)
    free.give_back(offset)
    with pytest.raises(KeyError):
        free.give_back(offset)


def test_an_arena_without_bytes_has_no_room_and_a_slot_is_no_more_than_rounded_up() -> None:
    assert FreeList(0).take(1) is None and FreeList(0).largest_hole == 0
    assert [slot_bytes(size) for size in (1, 256, 257)] == [256, 256, 512]
