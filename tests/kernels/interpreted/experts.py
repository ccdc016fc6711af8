"""LoRA inside experts by triton's interpreter. Run by tests/kernels/test_interpreted.py, in a process of their own."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.kernels import LoraWeights, Segments, SiteWeights, reference
from mint_stream.kernels.expert_cuda import DevicePairs, add_expert_lora, pair_bound
from mint_stream.kernels.experts import ExpertPairs
from tests.kernels import mixes

IN, OUT, EXPERTS = 72, 40, 5
slots_of_rows = st.lists(st.integers(-1, 2), min_size=1, max_size=60).map(sorted)


def chosen_by(rows: int, seed: int) -> Tensor:
    """Two experts a row; the first is everybody's favourite, the last is never chosen."""
    drawn = torch.rand(rows, EXPERTS - 1, generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] += 0.5
    return drawn.topk(2).indices


def weights_of(ranks: list[int]) -> SiteWeights:
    """An expert's A and Bt after the other's."""
    at: list[LoraWeights | None] = [None] * len(ranks)
    for slot, rank in enumerate(ranks):
        if rank:
            a, bt = mixes.random(EXPERTS * rank, IN, seed=slot) * IN**-0.5, mixes.random(EXPERTS * rank, OUT, seed=slot + 9) * rank**-0.5
            at[slot] = LoraWeights(a, bt, 0.5 + slot)
    return SiteWeights(at)


@settings(max_examples=20)
@given(slots_of_rows, st.lists(st.sampled_from([0, 1, 3, 16, 33]), min_size=3, max_size=3), st.integers(0, 99))
@example([-1] * 7 + [2] * 40, [0, 1, 3], 0)
def test_every_pair_gets_its_adapter_at_its_expert_and_other_pairs_keep_their_bits(slots: list[int], ranks: list[int], seed: int) -> None:
    segments, chosen = Segments.of_slots(slots), chosen_by(len(slots), seed)
    pairs, on_device = ExpertPairs.of(chosen, segments, EXPERTS), DevicePairs.of(chosen, segments, EXPERTS, 3)
    rows = torch.tensor(slots)[pairs.order // 2]
    x, y, weights = mixes.random(len(rows), IN), mixes.random(len(rows), OUT, seed=1), weights_of(ranks)
    expected, got, again = (y.clone() for _ in range(3))
    reference.add_expert_lora(x, expected, pairs, weights)
    for result in (got, again):
        add_expert_lora(x, result, on_device, weights, segments)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    bare = torch.tensor([slot < 0 or ranks[slot] == 0 for slot in rows.tolist()])
    assert torch.equal(got[bare], y[bare]) and torch.equal(got, again)


def test_weights_of_other_shapes_are_refused() -> None:
    segments, chosen = Segments.of_slots([0, 0]), chosen_by(2, 0)
    pairs = DevicePairs.of(chosen, segments, EXPERTS, 1)
    with pytest.raises(ValueError, match="do not fit"):
        add_expert_lora(mixes.random(4, IN + 4), mixes.random(4, OUT), pairs, weights_of([8]), segments)
    with pytest.raises(ValueError, match="contiguous"):
        add_expert_lora(mixes.random(IN, 4).t(), mixes.random(4, OUT), pairs, weights_of([8]), segments)


@settings(max_examples=60)
@given(st.lists(st.integers(-1, 7), min_size=1, max_size=300), st.integers(0, 99))
@example([-1] * 7 + [3] * 90, 0)  # several tiles of one adapter at one expert
def test_every_pair_of_an_adapter_is_in_exactly_one_item_within_the_bound(slots: list[int], seed: int) -> None:
    segments, chosen = Segments.of_slots(slots), chosen_by(len(slots), seed)
    pairs = DevicePairs.of(chosen, segments, EXPERTS, 8)
    assert torch.equal(pairs.order, ExpertPairs.of(chosen, segments, EXPERTS).order)
    keys = (chosen * 9 + torch.tensor(slots)[:, None] + 1).reshape(-1)[pairs.order]
    covered = [(pair, key) for start, count, key, _ in pairs.items.tolist() for pair in range(start, start + count)]
    assert sorted(covered) == [(pair, key) for pair, key in enumerate(keys.tolist()) if key % 9]
    assert len(pairs.items) == pair_bound(2 * len(slots), EXPERTS, 8)
