"""What callers call reaches the Triton kernels, in serving and in training. Run by tests/kernels/test_interpreted.py."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mint_stream.kernels import (
    Bound,
    Dropout,
    ExpertPairs,
    LoraWeights,
    Segments,
    SiteWeights,
    SliceWeights,
    add_expert_lora,
    add_lora_slices,
    cpu,
    experts,
    lora_with_gradients,
    paths,
    reference,
    triton_on,
)
from mint_stream.kernels.attention import packed_attention, paged_attention, takes_attention
from mint_stream.kernels.attention_plan import PagedSpan, PagedSpans
from mint_stream.kernels.attention_rule import Rule
from mint_stream.kernels.bound_attention import BoundAttention
from mint_stream.kernels.tiles import RANKS, ROWS
from mint_stream.kernels.training_cuda import readable, takes
from mint_stream.kernels.warming import warm
from tests.kernels import mixes

ATOL = 2e-4


def test_triton_computes_wherever_it_interprets() -> None:
    assert paths.INTERPRETED and triton_on(torch.device("cpu"))


def test_every_variant_of_every_rank_is_tried_before_anybody_waits_for_it() -> None:
    assert warm(torch.device("cpu"), torch.float32) == len(ROWS) * len(RANKS)


def test_slices_that_triton_can_read_and_one_that_it_cannot_all_get_their_adapters() -> None:
    segments, x = mixes.segments_of([(-1, 3), (0, 5), (1, 9)]), mixes.random(17, 64)
    sites = [mixes.site([4, 33], 64, width, seed=width) for width in (32, 16, 18)]
    ys = [mixes.random(17, width) for width in (32, 16, 18)]
    expected = [y.clone() for y in ys]
    reference.add_lora_slices(x, list(zip(expected, sites, strict=True)), segments)
    add_lora_slices(x, ys, segments, SliceWeights(sites))
    for got, right in zip(ys, expected, strict=True):
        torch.testing.assert_close(got, right, atol=ATOL, rtol=ATOL)


def test_a_graphs_layer_that_triton_cannot_read_is_refused_and_not_left_to_the_bare_base() -> None:
    bound = Segments((), 4, bound=Bound(torch.zeros(4, 4, dtype=torch.int32), 32))
    with pytest.raises(ValueError, match="a graph's layers are read by the kernels"):
        add_lora_slices(mixes.random(4, 64), [mixes.random(4, 18)], bound, SliceWeights([SiteWeights([None, None])]))
    q, pages = mixes.random(2, 4, 18), mixes.random(3, 16, 2, 18)
    spans = BoundAttention(4, 1, q.device).spans(2, 1)
    with pytest.raises(ValueError, match="a graph attends by the kernels"):
        paged_attention(q, pages, pages, torch.zeros(1, 1, dtype=torch.int32), spans, Rule(0.25))


def test_the_matrices_of_one_expert_layer_share_the_pairs_that_the_device_made() -> None:
    segments = Segments.of_slots([0] * 9 + [-1] * 3 + [1] * 8)
    chosen = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)).topk(2).indices
    pairs = ExpertPairs.of(chosen, segments, 4)
    for outputs in (24, 48):
        x, y = mixes.random(40, 32), mixes.random(40, outputs, seed=1)
        weights = mixes.site([4 * 5, 4 * 16], 32, outputs)
        expected, torchs = y.clone(), y.clone()
        reference.add_expert_lora(x, expected, pairs, weights)
        experts.add_expert_lora(x, torchs, pairs, weights)
        add_expert_lora(x, y, pairs, weights)
        torch.testing.assert_close(y, expected, atol=ATOL, rtol=ATOL)
        torch.testing.assert_close(torchs, expected, atol=ATOL, rtol=ATOL)
    assert list(pairs.kept) == [2]


def masters(ranks: list[int], inputs: int, outputs: int, dropout: float = 0.0, grads: torch.dtype = torch.float32) -> SiteWeights:
    """Adapters as a trainer has them: Bt a transposed view, A at any place of a flat tensor, gradients of any dtype."""
    found: list[LoraWeights | None] = []
    for slot, rank in enumerate(ranks):
        flat = mixes.random(1 + rank * (inputs + outputs), seed=slot) * 0.3
        a, b = flat[1 : 1 + rank * inputs].view(rank, inputs), flat[1 + rank * inputs :].view(outputs, rank)
        drop = Dropout(dropout, seed=slot) if dropout else None
        grad_a, grad_b = torch.ones_like(a, dtype=grads), torch.ones_like(b, dtype=grads)
        found.append(LoraWeights(a, b.t(), 0.5 + slot, grad_a, grad_b.t(), drop))
    return SiteWeights(found)


@settings(max_examples=8)
@given(mixes.pieces, st.sampled_from([0.0, 0.5]), st.sampled_from([torch.float32, torch.float16]))
def test_training_through_triton_is_training_through_torch(pieces: list[tuple[int, int]], dropout: float, grads: torch.dtype) -> None:
    segments = mixes.segments_of(pieces)
    x, y = mixes.random(segments.rows, 64), mixes.random(segments.rows, 32, seed=1)
    mine, theirs = (masters([3, 17, 8, 1], 64, 32, dropout, grads) for _ in range(2))
    assert takes(x, y, mine)
    leaf = x.clone().requires_grad_()
    out = lora_with_gradients(leaf, y.clone(), segments, mine, torch.zeros((), requires_grad=True))
    out.square().sum().backward()
    expected = y.clone()
    cpu.train_lora(x, expected, segments, theirs)
    grad_x = torch.zeros_like(x)
    wide = [
        None if lora is None else replace(lora, grad_A=torch.zeros(lora.A.shape), grad_Bt=torch.zeros(lora.Bt.shape)) for lora in theirs.at
    ]
    cpu.lora_backward(x, 2 * expected, segments, SiteWeights(wide), grad_x)
    torch.testing.assert_close(out.detach(), expected, atol=ATOL, rtol=ATOL)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, grad_x, atol=1e-3, rtol=1e-3)
    tolerance = 1e-3 if grads == torch.float32 else 5e-2
    for ours, right in zip(mine.at, wide, strict=True):
        assert ours is not None and right is not None
        for got, found in ((ours.grad_A, right.grad_A), (ours.grad_Bt, right.grad_Bt)):
            assert got is not None and found is not None and got.dtype == grads
            torch.testing.assert_close(got.float(), found + 1.0, atol=tolerance, rtol=tolerance)


def test_a_master_that_the_kernels_can_read_is_not_copied() -> None:
    lora = LoraWeights(mixes.random(4, 8), mixes.random(4, 16), 1.0, torch.zeros(4, 8), torch.zeros(16, 4).t())
    (found,) = readable(SiteWeights([lora])).at
    assert found is not None and found.A is lora.A and found.Bt is lora.Bt and found.grad_Bt is lora.grad_Bt
    assert not takes(mixes.random(4, 9), mixes.random(4, 16), SiteWeights([lora]))


def by_torch(sides: list[Tensor], spans: PagedSpans, scaling: float) -> Tensor:
    """Each sequence by torch's own attention."""
    parts = []
    for span in spans.items:
        q, k, v = (side[span.start : span.end].transpose(0, 1)[None] for side in sides)
        parts.append(functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(parts)


def test_attention_in_training_goes_through_triton_both_ways() -> None:
    spans = PagedSpans((PagedSpan(0, 20, 0, 0), PagedSpan(20, 29, 0, 1)), 29)
    shapes = ((4, 16), (2, 16), (2, 24))
    sides = [[mixes.random(29, *shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)] for _ in range(2)]
    assert takes_attention(*sides[0])
    ours, right = packed_attention(*sides[0], spans, Rule(0.25)), by_torch(sides[1], spans, 0.25)
    torch.testing.assert_close(ours, right, atol=ATOL, rtol=ATOL)
    for out in (ours, right):
        out.square().sum().backward()
    for mine, theirs in zip(*sides, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize("width", [18, 260])
def test_heads_that_the_kernels_cannot_read_are_left_to_torch(width: int) -> None:
    assert not takes_attention(*(mixes.random(4, 2, width) for _ in range(3)))
