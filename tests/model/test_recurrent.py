"""Recurrent layers in packed passes: groups of equal length, each sequence's state its own."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.engine.kv_cache import SlottedCache
from mint_stream.kernels import Segments
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import Pass, Span
from mint_stream.model.recurrent import PackedRecurrence, grouped
from mint_stream.model.tiny import VOCABULARY, linear_paths, tiny_model

SPANS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(-1, 2)), min_size=1, max_size=8)


def passed(spans: list[tuple[int, int, int]]) -> Pass:
    """A pass of spans (position, rows, adapter slot)."""
    made: list[Span] = []
    for slot, (position, rows, _) in enumerate(spans):
        begin = made[-1].end if made else 0
        made.append(Span(begin, begin + rows, position, slot))
    return Pass((0,) * made[-1].end, tuple(made), (), Segments.of_slots([adapter for _, rows, adapter in spans for _ in range(rows)]))


@given(spans=SPANS)
def test_every_row_is_in_one_group_with_its_adapter_beside_spans_of_its_length(spans: list[tuple[int, int, int]]) -> None:
    whole = passed(spans)
    groups = grouped(whole)
    assert sorted(row for group in groups for row in group.rows) == list(range(len(whole.tokens)))
    assert len({(group.spans[0].rows, group.begins) for group in groups}) == len(groups)
    for group in groups:
        assert len({span.rows for span in group.spans}) == 1
        assert {span.position == 0 for span in group.spans} == {group.begins}
        assert group.pass_.segments.slots() == [whole.segments.slots()[row] for row in group.rows]


def test_a_taken_slot_begins_without_what_the_last_sequence_left_there() -> None:
    model = PackedModel(tiny_model("qwen3_next"), linear_paths(tiny_model("qwen3_next")))
    cache = SlottedCache(1, 16, torch.float32, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    tokens = tuple(torch.randint(0, VOCABULARY, (6,), generator=draw).tolist())

    def logits() -> torch.Tensor:
        pass_ = Pass(tokens, (Span(0, 6, 0, 0),), (5,), Segments((), 6))
        cache.place(pass_)
        return model.forward(pass_, cache)

    first = logits()
    states = dict(cache._states)
    assert states and all(bool(state.any()) for state in states.values())
    for state in states.values():
        state.fill_(torch.nan)
    assert torch.equal(logits(), first)


def test_preparing_a_model_twice_wraps_its_layers_once() -> None:
    model = tiny_model("qwen3_next")
    for _ in range(2):
        PackedModel(model, linear_paths(model))
    mixer = model.model.layers[0].linear_attn
    assert isinstance(mixer.forward, PackedRecurrence) and not isinstance(mixer.forward.stock, PackedRecurrence)
