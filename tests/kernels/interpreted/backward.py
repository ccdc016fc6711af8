"""The Triton backward of LoRA by triton's interpreter. Run by tests/kernels/test_interpreted.py, in a process of their own."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mint_stream.bench.lora_cases import Popularity, popular
from mint_stream.kernels import Dropout, Segments, SiteWeights, cuda, reference
from mint_stream.kernels.gradients import gradient
from mint_stream.kernels.tables import gradient_table, run_tables
from mint_stream.kernels.tiles import ROWS
from mint_stream.kernels.worklist import plan
from tests.kernels import mixes

IN, OUT = 72, 136
TOLERANCE = {torch.float32: 2e-4, torch.float16: 4e-2}


def gradients(weights: SiteWeights) -> list[Tensor]:
    return [grad for lora in weights.at if lora is not None for grad in (lora.grad_A, lora.grad_Bt) if grad is not None]


def check(segments: Segments, ranks: list[int], dtype: torch.dtype = torch.float32) -> None:
    x, grad_y = mixes.random(segments.rows, IN, dtype=dtype), mixes.random(segments.rows, OUT, dtype=dtype, seed=1)
    sides = [mixes.site(ranks, IN, OUT, dtype, training=True) for _ in range(3)]
    grads_x = [torch.ones_like(x) for _ in sides]
    for backward, weights, grad_x in zip((reference.lora_backward, *[cuda.lora_backward] * 2), sides, grads_x, strict=True):
        backward(x, grad_y, segments, weights, grad_x)
    expected, got, again = ([grad_x, *gradients(weights)] for grad_x, weights in zip(grads_x, sides, strict=True))
    for one, other, repeated in zip(expected, got, again, strict=True):
        torch.testing.assert_close(other, one, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert torch.equal(other, repeated)


@settings(max_examples=30)
@given(mixes.pieces, mixes.ranks)
def test_any_ranks_over_ragged_and_empty_segments_equal_the_reference_and_repeat_their_bits(
    pieces: list[tuple[int, int]], ranks: list[int]
) -> None:
    check(mixes.segments_of(pieces), ranks)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["identical", "uniform", "zipf", "distinct"])
def test_every_popularity_equals_the_reference(kind: Popularity, dtype: torch.dtype) -> None:
    check(Segments.of_slots(popular(kind, 20, 3)), [8, 3, 17] * 7, dtype)


def test_an_adapter_of_many_rows_in_several_places_adds_them_all_up() -> None:
    check(mixes.segments_of([(0, 70), (1, 3), (-1, 2), (0, 66), (2, 1)]), [16, 5, 0])


def test_an_adapter_in_company_has_the_gradients_it_has_alone_beside_nan_too() -> None:
    x, grad_y = mixes.random(90, IN), mixes.random(90, OUT, seed=1)
    found = []
    for pieces in ([(-1, 10), (0, 70), (-1, 10)], [(1, 5), (2, 5), (0, 70), (1, 10)]):
        weights, grad_x = mixes.site([9, 100, 16], IN, OUT, training=True), torch.zeros_like(x)
        if pieces[0][0] == 1:
            x[:10] = torch.nan
        cuda.lora_backward(x, grad_y, mixes.segments_of(pieces), weights, grad_x)
        found.append((grad_x[10:80], *gradients(weights)[:2]))
    for alone, beside in zip(*found, strict=True):
        assert torch.equal(alone, beside) and alone.isfinite().all()


def test_inputs_and_weights_that_need_no_gradient_get_none() -> None:
    x, grad_y, segments = mixes.random(4, IN), mixes.random(4, OUT), mixes.segments_of([(0, 4)])
    (whole,) = mixes.site([8], IN, OUT, training=True).at
    assert whole is not None
    frozen = replace(whole, grad_A=None)
    cuda.lora_backward(x, grad_y, segments, SiteWeights([frozen]), None)
    alone = mixes.site([8], IN, OUT, training=True)
    reference.lora_backward(x, grad_y, segments, alone, None)
    torch.testing.assert_close(frozen.grad_Bt, gradients(alone)[1], atol=1e-4, rtol=1e-4)


@settings(max_examples=15)
@given(mixes.pieces, mixes.ranks)
def test_gradient_equals_its_reference(pieces: list[tuple[int, int]], ranks: list[int]) -> None:
    segments, z = mixes.segments_of(pieces), mixes.random(sum(rows for _, rows in pieces), OUT)
    expected, got = (mixes.site(ranks, IN, OUT, training=True) for _ in range(2))
    for launch in plan(segments, ranks, IN, z.dtype, ROWS[1]):
        h = mixes.random(launch.planes, 1, segments.rows, launch.tile.rank, seed=3)
        mine = [rank if any(item.slot == slot and item.rows for item in launch.items) else 0 for slot, rank in enumerate(ranks)]
        grads = [None if lora is None or not rank else lora.grad_Bt for lora, rank in zip(expected.at, mine, strict=True)]
        reference.gradient(h.sum(0)[0], z, segments, expected, grads)
        gradient(h, z, *run_tables(segments, launch, z.device), gradient_table(got, "grad_Bt", z.device), launch)
    for one, other in zip(gradients(expected), gradients(got), strict=True):
        torch.testing.assert_close(other, one, atol=2e-4, rtol=2e-4)


def test_layouts_that_the_kernels_cannot_read_are_refused() -> None:
    x, grad_y, segments = mixes.random(2, IN), mixes.random(2, OUT), mixes.segments_of([(0, 2)])
    weights = mixes.site([8], IN, OUT, training=True)
    assert cuda.takes_backward(x, grad_y, weights, torch.zeros_like(x))
    (lora,) = weights.at
    assert lora is not None and lora.grad_A is not None
    for bad in (
        replace(lora, dropout=Dropout(0.5, 1)),
        replace(lora, grad_A=lora.grad_A.half()),
        replace(lora, Bt=lora.Bt.t().contiguous().t()),
    ):
        assert not cuda.takes_backward(x, grad_y, SiteWeights([bad]), None)
    assert not cuda.takes_backward(x, grad_y[:, :1].expand(2, OUT), weights, None)
    with pytest.raises(ValueError, match="without dropout"):
        cuda.lora_backward(x, grad_y, segments, SiteWeights([replace(lora, dropout=Dropout(0.5, 1))]), None)
