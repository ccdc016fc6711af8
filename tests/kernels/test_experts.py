"""The torch path of LoRA inside experts computes what the reference defines, for every pair of a row and an expert."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.kernels import ExpertPairs, LoraWeights, Segments, SiteWeights, add_expert_lora, reference

IN, OUT, EXPERTS = 6, 5, 4

slots_of_rows = st.lists(st.integers(-1, 3), min_size=1, max_size=16)
ranks = st.lists(st.sampled_from([0, 1, 3]), min_size=4, max_size=4)


def lora(rank: int, seed: int) -> LoraWeights:
    draw = torch.Generator().manual_seed(seed)
    return LoraWeights(torch.randn(EXPERTS * rank, IN, generator=draw), torch.randn(EXPERTS * rank, OUT, generator=draw), 0.5)


def chosen(rows: int, each: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(EXPERTS, generator=draw)[:each] for _ in range(rows)])


@settings(max_examples=60)
@given(slots=slots_of_rows, ranks=ranks, each=st.integers(1, EXPERTS), seed=st.integers(0, 99))
def test_every_pair_gets_its_rows_adapter_at_its_own_expert(slots: list[int], ranks: list[int], each: int, seed: int) -> None:
    picks = chosen(len(slots), each, seed)
    pairs = ExpertPairs.of(picks, Segments.of_slots(slots), EXPERTS)
    site = SiteWeights([lora(rank, at) if rank else None for at, rank in enumerate(ranks)])
    x, y = torch.randn(picks.numel(), IN), torch.randn(picks.numel(), OUT)
    expected, got = y.clone(), y.clone()
    reference.add_expert_lora(x, expected, pairs, site)
    add_expert_lora(x, got, pairs, site)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    for pair, place in enumerate(pairs.order.tolist()):
        slot, expert = slots[place // each], int(picks.view(-1)[place])
        if slot < 0 or not ranks[slot]:
            assert torch.equal(got[pair], y[pair])
            continue
        at = slice(expert * ranks[slot], (expert + 1) * ranks[slot])
        a, bt = site.at[slot].A[at], site.at[slot].Bt[at]
        torch.testing.assert_close(got[pair], y[pair] + 0.5 * (x[pair] @ a.t()) @ bt, atol=1e-4, rtol=1e-4)


@settings(max_examples=40)
@given(slots=slots_of_rows, each=st.integers(1, EXPERTS), seed=st.integers(0, 99))
def test_pairs_are_all_there_once_and_in_one_run_an_expert(slots: list[int], each: int, seed: int) -> None:
    picks = chosen(len(slots), each, seed)
    pairs = ExpertPairs.of(picks, Segments.of_slots(slots), EXPERTS)
    assert sorted(pairs.order.tolist()) == list(range(picks.numel()))
    runs = pairs.by_expert()
    assert [run[2] for run in runs] == sorted({int(expert) for expert in picks.view(-1)})
    for start, end, expert in runs:
        assert all(int(picks.view(-1)[place]) == expert for place in pairs.order[start:end].tolist())


def test_a_broken_adapter_in_company_changes_no_bit_of_its_neighbours() -> None:
    pairs = ExpertPairs.of(chosen(6, 2, 0), Segments.of_slots([0, 1, -1, 0, 1, -1]), EXPERTS)
    x, y = torch.randn(12, IN), torch.randn(12, OUT)
    mine, other = lora(3, 0), lora(3, 1)
    alone, beside = y.clone(), y.clone()
    add_expert_lora(x, alone, pairs, SiteWeights([mine, other]))
    other.A.fill_(torch.nan)
    add_expert_lora(x, beside, pairs, SiteWeights([mine, other]))
    theirs = torch.tensor([place // 2 in (1, 4) for place in pairs.order.tolist()])
    assert torch.equal(alone[~theirs], beside[~theirs]) and bool(beside[theirs].isnan().all())


def test_adapters_may_be_wider_than_what_the_base_computes_in() -> None:
    pairs = ExpertPairs.of(chosen(5, 2, 0), Segments.of_slots([0, 0, 1, -1, 1]), EXPERTS)
    x, y = torch.randn(10, IN).bfloat16(), torch.randn(10, OUT).bfloat16()
    expected, got = y.clone(), y.clone()
    site = SiteWeights([lora(3, 0), lora(1, 1)])
    reference.add_expert_lora(x, expected, pairs, site)
    add_expert_lora(x, got, pairs, site)
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.02)


def test_pairs_of_another_layer_are_refused() -> None:
    pairs = ExpertPairs.of(chosen(2, 2, 0), Segments((), 2), EXPERTS)
    with pytest.raises(ValueError, match="the layer has 4 pairs, x has 3"):
        add_expert_lora(torch.zeros(3, IN), torch.zeros(4, OUT), pairs, SiteWeights([]))
