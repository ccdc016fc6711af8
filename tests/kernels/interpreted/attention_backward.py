"""Attention's training by triton's interpreter. Run by tests/kernels/test_interpreted.py, in a process of their own."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.kernels import reference
from mint_stream.kernels.attention_backward import attention_backward, packed_attention
from mint_stream.kernels.attention_plan import PagedSpan, PagedSpans
from tests.kernels import mixes

TOLERANCE = {torch.float32: 2e-4, torch.float16: 1e-2}


def packed(lengths: list[int]) -> PagedSpans:
    """Sequences one after another, a row of nobody behind each."""
    starts = [sum(lengths[:at]) + at for at in range(len(lengths))]
    spans = (PagedSpan(start, start + length, 0, at) for at, (start, length) in enumerate(zip(starts, lengths, strict=True)))
    return PagedSpans(tuple(spans), sum(lengths) + len(lengths))


def given_to(rows: int, heads: int, group: int, key: int, value: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v and the gradient of out."""
    shapes = ((heads * group, key), (heads, key), (heads, value), (heads * group, value))
    return [mixes.random(rows, *shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


def gradients(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, spans: PagedSpans, **rule: Any) -> tuple[Tensor, ...]:
    out = packed_attention(q, k, v, spans, 0.3, **rule)
    return attention_backward(q, k, v, out, grad_out, spans, 0.3, **rule)


def check(spans: PagedSpans, tensors: list[Tensor], **rule: Any) -> None:
    q, k, v, grad_out = tensors
    tolerance = TOLERANCE[q.dtype]
    out, expected_out = (op(q, k, v, spans, 0.3, **rule) for op in (packed_attention, reference.packed_attention))
    expected = reference.attention_backward(q, k, v, expected_out, grad_out, spans, 0.3, **rule)
    for span in spans.items:
        torch.testing.assert_close(out[span.start : span.end], expected_out[span.start : span.end], atol=tolerance, rtol=tolerance)
    for got, right, again in zip(gradients(*tensors, spans, **rule), expected, gradients(*tensors, spans, **rule), strict=True):
        torch.testing.assert_close(got, right, atol=tolerance, rtol=tolerance)
        assert torch.equal(got, again)


@settings(max_examples=8)
@given(
    st.lists(st.integers(0, 45), min_size=1, max_size=3),
    st.sampled_from([None, 1, 5, 40]),
    st.sampled_from([None, 2.0]),
    st.booleans(),
    st.sampled_from([1, 2, 3]),
)
def test_packed_sequences_equal_the_reference_and_repeat_their_bits(
    lengths: list[int], window: int | None, softcap: float | None, sinks: bool, group: int
) -> None:
    spans = packed(lengths)
    given_sinks = mixes.random(2 * group, seed=9) if sinks else None
    check(spans, given_to(spans.rows, 2, group, 16, 16), window=window, softcap=softcap, sinks=given_sinks)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("key", "value", "group"), [(24, 16, 1), (40, 72, 5), (16, 16, 24)])
def test_any_widths_and_groups_equal_the_reference(key: int, value: int, group: int, dtype: torch.dtype) -> None:
    spans = packed([20, 9])
    check(spans, given_to(spans.rows, 1, group, key, value, dtype))


def test_a_sequence_beside_one_of_nan_has_the_gradients_that_it_has_alone() -> None:
    spans = packed([5, 40, 7])
    q, k, v, grad_out = given_to(spans.rows, 2, 2, 16, 16)
    alone = gradients(q, k, v, grad_out, PagedSpans(spans.items[1:2], spans.rows))
    for side in (q, k, v, grad_out):
        side[:6], side[46:] = torch.nan, torch.nan
    beside = gradients(q, k, v, grad_out, spans)
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one[6:46], other[6:46]) and one[6:46].isfinite().all() and not one[:6].any()


def test_what_the_kernels_cannot_read_is_refused() -> None:
    spans = packed([4])
    q, k, v, grad_out = given_to(spans.rows, 2, 2, 16, 16)
    with pytest.raises(ValueError, match="contiguous"):
        attention_backward(q, k, v, grad_out, grad_out.transpose(0, 1).contiguous().transpose(0, 1), spans, 0.3)
    with pytest.raises(ValueError, match="fit each other"):
        attention_backward(q, k, v[:, :1].contiguous(), grad_out, grad_out, spans, 0.3)
