"""Passes of many adapters for kernel tests: ragged segments, popularity as tenants have it, weights laid out as in a block."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.kernels import LoraWeights, Segment, Segments, SiteWeights

RANKS = [0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 65, 100, 127, 128]
"""0: the adapter does not target the layer."""
ADAPTERS = 4

ranks = st.lists(st.sampled_from(RANKS), min_size=ADAPTERS, max_size=ADAPTERS)
pieces = st.lists(st.tuples(st.integers(-1, ADAPTERS - 1), st.integers(0, 19)), min_size=1, max_size=5)
"""(slot, rows) in row order; slot -1 is the bare base, 0 rows is an empty segment."""


def segments_of(pieces: Sequence[tuple[int, int]]) -> Segments:
    """The pass whose consecutive rows are `pieces`, empty segments kept."""
    items: list[Segment] = []
    start = 0
    for slot, rows in pieces:
        if slot >= 0:
            items.append(Segment(start, start + rows, slot))
        start += rows
    return Segments(tuple(items), start)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Numbers near 1 in size."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def site(
    ranks: Sequence[int], inputs: int, outputs: int, dtype: torch.dtype = torch.float32, seed: int = 0, training: bool = False
) -> SiteWeights:
    """A layer's adapters by slot, A [r, in] and Bt [r, out] contiguous; products of them stay near 1 in size.

    When `training`, with gradients of fp32 that start at 1, that of Bt a transposed view as masters have it.
    """
    at: list[LoraWeights | None] = [None] * len(ranks)
    for slot, rank in enumerate(ranks):
        if rank:
            a = random(rank, inputs, seed=seed + slot).div(inputs**0.5).to(dtype)
            bt = random(rank, outputs, seed=seed + slot + 100).div(rank**0.5).to(dtype)
            grads = (torch.ones(rank, inputs), torch.ones(outputs, rank).t()) if training else (None, None)
            at[slot] = LoraWeights(a, bt, 0.5 + slot, *grads)
    return SiteWeights(at)
