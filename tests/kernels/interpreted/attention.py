"""Paged attention by triton's interpreter. Run by tests/kernels/test_interpreted.py, in a process of their own."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.kernels import reference
from mint_stream.kernels.attention_plan import PagedSpan, PagedSpans
from mint_stream.kernels.paged_attention import paged_attention, takes
from tests.kernels import mixes

PAGE = 16
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3}


def spans_of(pieces: list[tuple[int, int]], gap: int = 1) -> PagedSpans:
    """(rows, position) of a sequence each, with rows of nobody between them."""
    spans, start = [], 0
    for sequence, (rows, position) in enumerate(pieces):
        spans.append(PagedSpan(start, start + rows, position, sequence))
        start += rows + gap
    return PagedSpans(tuple(spans), start)


def given_to(
    spans: PagedSpans, heads: int = 2, group: int = 2, key: int = 16, value: int = 16, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """q, keys, values and a table whose pages are scattered; pages of nobody hold NaN."""
    lengths = [span.position + span.end - span.start for span in spans.items]
    needed = max(-(-length // PAGE) for length in lengths)
    pages = torch.randperm(len(lengths) * needed + 3, generator=torch.Generator().manual_seed(1))
    table = pages[: len(lengths) * needed].view(len(lengths), needed).int()
    sides = [mixes.random(len(pages), PAGE, heads, width, dtype=dtype, seed=width) for width in (key, value)]
    for side in sides:
        side[pages[-3:]] = torch.nan
    return [mixes.random(spans.rows, heads * group, key, dtype=dtype), *sides, table]


def check(spans: PagedSpans, tensors: list[Tensor], **rule: Any) -> None:
    expected = reference.paged_attention(*tensors, spans, 0.25, **rule)
    got, again = (paged_attention(*tensors, spans, 0.25, **rule) for _ in range(2))
    tolerance = TOLERANCE[tensors[0].dtype]
    for span in spans.items:
        torch.testing.assert_close(got[span.start : span.end], expected[span.start : span.end], atol=tolerance, rtol=tolerance)
        assert torch.equal(got[span.start : span.end], again[span.start : span.end])


pieces = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0, 1, 15, 16, 33, 500, 511, 530])), min_size=1, max_size=4)


@settings(max_examples=12)
@given(pieces, st.sampled_from([None, 1, 5, 64, 513]), st.sampled_from([None, 3.0]), st.booleans(), st.sampled_from([1, 2, 3]))
def test_chunks_beside_decode_rows_equal_the_reference(
    pieces: list[tuple[int, int]], window: int | None, softcap: float | None, sinks: bool, group: int
) -> None:
    spans = spans_of(pieces)
    tensors = given_to(spans, group=group)
    check(spans, tensors, window=window, softcap=softcap, sinks=mixes.random(2 * group, seed=5) if sinks else None)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("key", "value", "heads", "group"), [(24, 16, 1, 1), (40, 72, 1, 5), (16, 16, 1, 24), (128, 96, 1, 2)])
def test_any_widths_and_groups_equal_the_reference(key: int, value: int, heads: int, group: int, dtype: torch.dtype) -> None:
    spans = spans_of([(1, 40), (20, 0), (9, 30)])
    check(spans, given_to(spans, heads, group, key, value, dtype), sinks=mixes.random(heads * group, dtype=dtype))


def test_latent_attention_has_wider_keys_than_values() -> None:
    spans = spans_of([(1, 40), (20, 0)])
    check(spans, given_to(spans, 1, 2, 192, 128, torch.float16))


def test_a_row_has_the_bits_that_it_has_without_company() -> None:
    spans = spans_of([(1, 600), (30, 20), (4, 70)])
    tensors = given_to(spans)
    together = paged_attention(*tensors, spans, 0.25, window=550)
    for span in spans.items:
        alone = paged_attention(*tensors, PagedSpans((span,), spans.rows), 0.25, window=550)
        assert torch.equal(together[span.start : span.end], alone[span.start : span.end])


def test_pages_with_heads_outside_tokens_are_read_by_their_strides() -> None:
    spans = spans_of([(20, 0), (1, 33)])
    q, keys, values, table = given_to(spans)
    check(spans, [q, *(side.transpose(1, 2).contiguous().transpose(1, 2) for side in (keys, values)), table])


def test_what_the_kernels_cannot_read_is_refused() -> None:
    spans = spans_of([(4, 0)])
    q, keys, values, table = given_to(spans)
    assert takes(q, keys, values) and not takes(q.half(), keys, values) and not takes(q[:, :, 1:], keys, values)
    for bad in (
        [q[:, :, :8], keys, values, table],
        [q, keys, values[:1], table],
        [q[:, :3], keys, values, table],
        [q, keys, values, table.long()],
    ):
        with pytest.raises(ValueError, match=r"fit each other|need"):
            paged_attention(*bad, spans, 0.25)
