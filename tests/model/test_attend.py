"""Decode rows of many sequences attend as the reference says, by the CPU's kernel and by torch."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.kernels import Segments, native, reference
from mint_stream.kernels.attention_plan import PagedSpan, PagedSpans
from mint_stream.kernels.attention_rule import Rule
from mint_stream.model.attend import many, packed, split
from mint_stream.model.passes import Pass, Span

SLOTS, TOKENS, HEADS, KV_HEADS = 6, 600, 6, 2
WIDTHS = ((64, 64), (128, 128), (16, 40), (80, 80))

lengths = st.lists(st.sampled_from([1, 2, 3, 5, 17, 255, 256, 257, 600]), min_size=2, max_size=5)
rules = st.builds(
    Rule,
    scaling=st.just(0.2),
    window=st.sampled_from([None, 1, 4, 300]),
    softcap=st.sampled_from([None, 5.0]),
    sinks=st.sampled_from([None, torch.linspace(-1, 2, HEADS)]),
)


def _attended(kind: torch.dtype, widths: tuple[int, int], spans: tuple[Span, ...], rule: Rule) -> tuple[Tensor, Tensor]:
    """(by `many`, by the reference) [rows, heads, value width]. Keys are stored as the engine does, values as views with gaps."""
    generator = torch.Generator().manual_seed(len(spans))
    rows = spans[-1].end + 1
    q = torch.randn(rows, HEADS, widths[0], generator=generator).to(kind)
    keys, values = (torch.randn(SLOTS, TOKENS, KV_HEADS, width + 8, generator=generator).to(kind)[..., :width] for width in widths)
    pass_ = Pass((0,) * rows, spans, (), Segments((), rows))
    out = torch.zeros(rows, HEADS, widths[1], dtype=kind)
    stored = keys.transpose(1, 2), values.transpose(1, 2)
    many(spans, q.transpose(0, 1)[None], stored, rule, pass_, out, native.takes_attention(q, *stored, out))
    paged = PagedSpans(tuple(PagedSpan(span.start, span.end, span.position, span.slot) for span in spans), rows)
    table = torch.arange(SLOTS, dtype=torch.int32)[:, None]
    return out, reference.paged_attention(q, keys, values, table, paged, *rule.arguments())


@settings(deadline=None, max_examples=40)
@given(
    lengths, st.permutations(range(SLOTS)), st.sampled_from(WIDTHS), rules, st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
)
def test_each_row_sees_its_own_sequence_as_its_layer_says(
    lengths: list[int], slots: list[int], widths: tuple[int, int], rule: Rule, kind: torch.dtype
) -> None:
    taken = sorted(slots[: len(lengths)])
    spans = tuple(Span(at, at + 1, length - 1, slot) for at, (length, slot) in enumerate(zip(lengths, taken, strict=True)))
    with torch.inference_mode():
        got, expected = _attended(kind, widths, spans, rule)
    within = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float64: 2e-5}[kind]
    torch.testing.assert_close(got.double(), expected.double(), atol=within, rtol=within)


@pytest.mark.skipif(not native.kernels(), reason="there is no g++ on this machine")
def test_heads_wider_than_the_kernel_holds_are_torchs() -> None:
    wide = torch.zeros(2, 1, native.MOST_WIDTH + 8)
    with torch.inference_mode():
        assert not native.takes_attention(wide, wide[None], wide[None], wide)
        assert native.takes_attention(wide[..., :64], wide[None], wide[None, ..., :64], torch.zeros(2, 1, 64))


@pytest.mark.skipif(not native.kernels(), reason="there is no g++ on this machine")
@settings(deadline=None, max_examples=40)
@given(lengths, st.permutations(range(SLOTS)), rules, st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_decode_rows_bits_are_its_own_matter_in_any_company(lengths: list[int], slots: list[int], rule: Rule, kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(len(lengths))
    stored = tuple(torch.randn(SLOTS, KV_HEADS, TOKENS, 64, generator=draw).to(kind) for _ in range(2))
    query = torch.randn(1, HEADS, len(lengths), 64, generator=draw).to(kind)
    fresh = torch.zeros(1, KV_HEADS, len(lengths), 64, dtype=kind)

    def attended(rows: list[int]) -> Tensor:
        spans = tuple(Span(at, at + 1, lengths[row], slots[row]) for at, row in enumerate(rows) if lengths[row] < TOKENS)
        pass_ = Pass((0,) * len(rows), spans, (), Segments((), len(rows)))
        q, k, v = (side[:, :, rows].contiguous() for side in (query, fresh, fresh))
        return packed(q, k, v, (stored[0], stored[1]), rule, pass_)

    with torch.inference_mode():
        whole = attended(list(range(len(lengths))))
        there = [row for row, length in enumerate(lengths) if length < TOKENS]
        for row, other in itertools.permutations(there, 2):
            assert torch.equal(attended([row, other])[0], whole[row])


def test_rows_that_are_padded_to_the_longest_leave_one_that_is_far_longer_to_itself() -> None:
    spans = tuple(Span(at, at + 1, position, at) for at, position in enumerate((5, 7, 3000, 9)))
    pass_ = Pass((0,) * 4, spans, (), Segments((), 4))
    assert split(pass_, padded=False) == (spans, ()) and split(pass_, padded=True) == ((*spans[:2], spans[3]), (spans[2],))
