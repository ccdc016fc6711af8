"""A pass: sequences packed row by row, positions of their own, segments of the adapters they asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.kernels import LoraWeights, Segments
from mint_stream.kernels.segments import Segment
from mint_stream.model.passes import NO_ADAPTERS, AdapterSet, Pass, Span, pack

SEQUENCES = st.lists(st.tuples(st.lists(st.integers(0, 99), max_size=6), st.integers(-1, 3)), max_size=6)


def slots_of(segments: Segments) -> list[int]:
    slots = [-1] * segments.rows
    for item in segments.items:
        slots[item.start : item.end] = [item.slot] * (item.end - item.start)
    return slots


def lora(rank: int = 2) -> LoraWeights:
    return LoraWeights(torch.ones(rank, 3), torch.ones(rank, 5))


@settings(max_examples=100, deadline=None)
@given(sequences=SEQUENCES)
def test_packing_keeps_every_token_its_place_and_its_adapter(sequences: list[tuple[list[int], int]]) -> None:
    packed = pack(sequences)
    assert list(packed.tokens) == [token for ids, _ in sequences for token in ids]
    assert list(packed.positions) == [place for ids, _ in sequences for place in range(len(ids))]
    assert slots_of(packed.segments) == [slot for ids, slot in sequences for _ in ids]
    assert [packed.tokens[span.start : span.end] for span in packed.spans] == [tuple(ids) for ids, _ in sequences]
    assert packed.selected == tuple(range(len(packed.tokens)))
    assert all((span.position, span.slot) == (0, -1) for span in packed.spans)


@settings(max_examples=100, deadline=None)
@given(sequences=SEQUENCES, data=st.data())
def test_the_rows_of_the_head_have_the_adapters_of_the_rows_selected(sequences: list[tuple[list[int], int]], data: st.DataObject) -> None:
    rows = sum(len(ids) for ids, _ in sequences)
    selected = sorted(data.draw(st.sets(st.integers(0, max(0, rows - 1)), max_size=rows)))
    packed = pack(sequences, selected)
    whole = slots_of(packed.segments)
    assert slots_of(packed.selected_segments) == [whole[row] for row in selected]


@settings(max_examples=100, deadline=None)
@given(slots=st.lists(st.integers(-1, 3), max_size=20))
def test_segments_are_as_few_as_can_be(slots: list[int]) -> None:
    segments = Segments.of_slots(slots)
    assert slots_of(segments) == slots
    runs = sum(1 for row, slot in enumerate(slots) if slot >= 0 and (row == 0 or slots[row - 1] != slot))
    assert len(segments.items) == runs


@pytest.mark.parametrize("items", [((2, 4, 0), (0, 2, 1)), ((0, 3, 0), (2, 4, 1)), ((3, 2, 0),), ((0, 6, 0),)])
def test_segments_that_overlap_go_back_or_leave_the_pass_are_refused(items: tuple[tuple[int, int, int], ...]) -> None:
    with pytest.raises(ValueError, match="segments must ascend within 5 rows without overlap"):
        Segments(tuple(Segment(*item) for item in items), 5)


def test_a_span_that_goes_on_has_the_positions_of_where_it_goes_on() -> None:
    prefill, decode = Span(0, 3, position=5, slot=2), Span(3, 4, position=40, slot=0)
    assert (prefill.rows, prefill.length, decode.length) == (3, 8, 41)
    passed = Pass((1, 2, 3, 4), (prefill, decode), (2, 3), Segments.of_slots([-1] * 4))
    assert passed.positions == (5, 6, 7, 40)


def test_a_layer_has_the_weights_of_the_adapters_that_target_it_slot_by_slot() -> None:
    one, other = lora(2), lora(4)
    adapters = AdapterSet([{"q": one}, {}, {"q": other, "v": other}])
    q, v = adapters.site("q"), adapters.site("v")
    assert q is not None and v is not None
    assert q.at == (one, None, other) and q.max_rank == 4
    assert v.at == (None, None, other)
    assert adapters.site("q") is q, "made once, for every pass with this set"


def test_a_layer_that_no_adapter_targets_has_none() -> None:
    assert AdapterSet([{"q": lora()}]).site("k") is None
    assert NO_ADAPTERS.site("q") is None


def test_what_layers_share_is_made_once_a_pass_and_not_shared_with_another() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    first, second = pack([([1], -1)]), pack([([1], -1)])
    assert [first.shared("mask", make) for _ in range(3)] == [0, 0, 0]
    assert first.shared("rows", make) == 1
    assert second.shared("mask", make) == 2
    assert first == second, "what was shared is no part of what a pass is"
