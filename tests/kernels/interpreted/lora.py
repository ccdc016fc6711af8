"""The Triton LoRA kernels by triton's interpreter. Run by tests/kernels/test_interpreted.py, in a process of their own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.bench.lora_cases import Popularity, popular
from mint_stream.kernels import Segments, SiteWeights, cuda, reference
from tests.kernels import mixes

IN, OUT = 136, 72
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}
"""Triton's interpreter computes garbage in bf16: there, only compilation is tested."""


def applied(y: Tensor, x: Tensor, segments: Segments, weights: SiteWeights, batch_invariant: bool = False) -> Tensor:
    y = y.clone()
    cuda.add_lora(x, y, segments, weights, batch_invariant)
    return y


def check(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights, batch_invariant: bool = False) -> None:
    expected = y.clone()
    reference.add_lora(x, expected, segments, weights)
    got = applied(y, x, segments, weights, batch_invariant)
    torch.testing.assert_close(got, expected, atol=TOLERANCE[x.dtype], rtol=TOLERANCE[x.dtype])
    untouched = torch.ones(segments.rows, dtype=torch.bool)
    for item, _ in weights.pairs(segments):
        untouched[item.start : item.end] = False
    assert torch.equal(got[untouched], y[untouched])
    assert torch.equal(got, applied(y, x, segments, weights, batch_invariant))


@settings(max_examples=40)
@given(mixes.pieces, mixes.ranks)
def test_any_ranks_over_ragged_and_empty_segments_equal_the_reference_and_repeat_their_bits(
    pieces: list[tuple[int, int]], ranks: list[int]
) -> None:
    segments = mixes.segments_of(pieces)
    x, y = mixes.random(segments.rows, IN), mixes.random(segments.rows, OUT, seed=1)
    check(x, y, segments, mixes.site(ranks, IN, OUT))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["identical", "uniform", "zipf", "distinct"])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_every_popularity_equals_the_reference(kind: Popularity, dtype: torch.dtype, batch_invariant: bool) -> None:
    rows = 20
    segments = Segments.of_slots(popular(kind, rows, 3))
    x, y = mixes.random(rows, IN, dtype=dtype), mixes.random(rows, OUT, dtype=dtype, seed=1)
    check(x, y, segments, mixes.site([8, 3, 17] * 7, IN, OUT, dtype), batch_invariant)


def test_a_sum_split_over_as_many_planes_as_there_can_be_is_whole() -> None:
    x, y = mixes.random(1, 1024), mixes.random(1, OUT, seed=1)
    check(x, y, mixes.segments_of([(0, 1)]), mixes.site([8], 1024, OUT))


def test_prefill_tiles_and_many_inputs_equal_the_reference() -> None:
    segments = mixes.segments_of([(-1, 1), (0, 67), (-1, 2), (1, 70)])
    x, y = mixes.random(segments.rows, 264), mixes.random(segments.rows, 264, seed=1)
    check(x, y, segments, mixes.site([16, 5], 264, 264))


@settings(max_examples=25)
@given(mixes.pieces, mixes.pieces, mixes.ranks)
def test_batch_invariant_rows_have_the_bits_they_have_alone(
    before: list[tuple[int, int]], after: list[tuple[int, int]], ranks: list[int]
) -> None:
    weights = mixes.site([9, *ranks], 520, OUT)  # more inputs than planes times tiles: another split would round otherwise
    mine_x, mine_y = mixes.random(5, 520, seed=7), mixes.random(5, OUT, seed=8)
    alone = applied(mine_y, mine_x, mixes.segments_of([(0, 5)]), weights, batch_invariant=True)
    company = [[(slot + 1 if slot >= 0 else slot, rows) for slot, rows in side] for side in (before, after)]
    segments = mixes.segments_of([*company[0], (0, 5), *company[1]])
    start = sum(rows for _, rows in before)
    x, y = mixes.random(segments.rows, 520), mixes.random(segments.rows, OUT, seed=1)
    x[start : start + 5], y[start : start + 5] = mine_x, mine_y
    assert torch.equal(applied(y, x, segments, weights, batch_invariant=True)[start : start + 5], alone)


def test_a_nan_in_company_stays_there() -> None:
    segments = mixes.segments_of([(0, 3), (1, 3), (-1, 2)])
    x, y = mixes.random(8, IN), mixes.random(8, OUT, seed=1)
    clean = applied(y, x, segments, mixes.site([8, 3], IN, OUT))
    broken = mixes.site([8, 3], IN, OUT)
    assert broken.at[1] is not None
    broken.at[1].A.fill_(torch.nan)
    x[3:6] = torch.nan
    got = applied(y, x, segments, broken)
    assert torch.equal(got[:3], clean[:3]) and torch.equal(got[6:], y[6:]) and got[3:6].isnan().all()


def test_layouts_that_the_kernels_cannot_read_are_refused() -> None:
    x, y, segments = mixes.random(2, IN), mixes.random(2, OUT), mixes.segments_of([(0, 2)])
    assert cuda.takes(x, y, mixes.site([8], IN, OUT))
    for bad in (mixes.random(2, IN + 1)[:, 1:], mixes.random(2, IN).half(), mixes.random(IN, 2).t()):
        assert not cuda.takes(bad, y, mixes.site([8], IN, OUT))
    with pytest.raises(ValueError, match="ranks up to 128"):
        cuda.add_lora(x, y, segments, mixes.site([129], IN, OUT))
    with pytest.raises(ValueError, match="do not fit"):
        cuda.add_lora(x, y, segments, mixes.site([8], IN + 4, OUT))


@settings(max_examples=12)
@given(mixes.pieces, st.lists(st.tuples(mixes.ranks, st.sampled_from([8, 72, 264, 40])), min_size=1, max_size=6), st.booleans())
def test_slices_of_any_widths_and_ranks_share_one_shrink(
    pieces: list[tuple[int, int]], shapes: list[tuple[list[int], int]], batch_invariant: bool
) -> None:
    segments = mixes.segments_of(pieces)
    x = mixes.random(segments.rows, IN)
    sites = [mixes.site(ranks, IN, outputs, seed=number) for number, (ranks, outputs) in enumerate(shapes)]
    whole = mixes.random(segments.rows, sum(outputs for _, outputs in shapes), seed=9)
    expected, got = whole.clone(), whole.clone()
    widths = [outputs for _, outputs in shapes]
    reference.add_lora_slices(x, list(zip(expected.split(widths, 1), sites, strict=True)), segments)
    cuda.add_lora_slices(x, list(zip(got.split(widths, 1), sites, strict=True)), segments, batch_invariant)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    apart = [y.clone() for y in whole.split(widths, 1)]
    cuda.add_lora_slices(x, list(zip(apart, sites, strict=True)), segments, batch_invariant)
    assert torch.equal(torch.cat(apart, 1), got)
