"""The CPU path computes what the reference defines."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.kernels import (
    Dropout,
    LoraWeights,
    Segment,
    Segments,
    SiteWeights,
    SliceWeights,
    Stack,
    add_lora,
    add_lora_slices,
    cpu,
    lora_with_gradients,
    reference,
)

IN, OUT = 12, 10


def _weights(rank: int, seed: int, grads: bool = False, dropout: Dropout | None = None) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, IN, generator=generator), torch.randn(OUT, rank, generator=generator)
    slices = (torch.zeros_like(a), torch.zeros_like(b).t()) if grads else (None, None)
    return LoraWeights(a, b.t(), 0.5, *slices, dropout)


def _tensors(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, IN, generator=generator), torch.randn(rows, OUT, generator=generator)


slots_of_rows = st.lists(st.integers(-1, 3), min_size=1, max_size=24).map(sorted)
ranks = st.lists(st.sampled_from([0, 1, 3, 8]), min_size=4, max_size=4)


@settings(deadline=None, max_examples=60)
@given(slots_of_rows, ranks)
def test_every_row_gets_its_own_adapter_and_base_rows_keep_their_bits(slots: list[int], ranks: list[int]) -> None:
    x, y = _tensors(len(slots))
    site = SiteWeights([_weights(rank, seed) if rank else None for seed, rank in enumerate(ranks)])
    segments = Segments.of_slots(slots)
    expected, got = y.clone(), y.clone()
    reference.add_lora(x, expected, segments, site)
    add_lora(x, got, segments, site)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for row, slot in enumerate(slots):
        assert (slot >= 0 and ranks[slot] > 0) or torch.equal(got[row], y[row])


SHAPES = ((3, 10), (5, 6))
"""(rank, out) of two layers that read the same x."""


def _stacked(first: int, slots: int, seed: int, together: bool) -> tuple[Stack, ...]:
    """One stack a layer of SHAPES, cut from rows of one arena as a batch's adapters are; `together`: their As are neighbours."""
    sizes = [rank * IN for rank, _ in SHAPES] + [rank * out for rank, out in SHAPES]
    order = [0, 1, 2, 3] if together else [0, 2, 1, 3]
    starts = {part: sum(sizes[other] for other in order[:at]) for at, part in enumerate(order)}
    arena = torch.randn(slots, sum(sizes), generator=torch.Generator().manual_seed(seed))
    parts = [arena[:, starts[part] : starts[part] + sizes[part]] for part in range(4)]
    ranks = [rank for rank, _ in SHAPES]
    return tuple(Stack(first, parts[at].view(slots, ranks[at], IN), parts[2 + at].view(slots, ranks[at], -1)) for at in range(2))


def _two_layers(together: bool) -> SliceWeights:
    """Three adapters of one layout in slots 0 to 2, two of another in slots 3 and 4; only the first targets the second layer."""
    first, second = _stacked(0, 3, 1, together), _stacked(3, 2, 2, together)
    return SliceWeights((SiteWeights(stacks=(first[0], second[0])), SiteWeights([None] * 5, stacks=(first[1],))))


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60).map(sorted), st.booleans())
def test_layers_that_share_their_input_each_get_what_the_reference_says(slots: list[int], together: bool) -> None:
    x, segments, weights = torch.randn(len(slots), IN), Segments.of_slots(slots), _two_layers(together)
    fused = torch.randn(len(slots), 16)
    expected = [part.clone() for part in fused.split([10, 6], dim=1)]
    for y, site in zip(expected, weights.sites, strict=True):
        assert site is not None
        reference.add_lora(x, y, segments, site)
    before = fused.clone()
    add_lora_slices(x, fused.split([10, 6], dim=1), segments, weights)
    torch.testing.assert_close(fused, torch.cat(expected, dim=1), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(fused[row], before[row]) for row, slot in enumerate(slots) if slot < 0)


@pytest.mark.parametrize(
    ("rows", "batched"),
    [([4, 4, 4], 4), ([1, 3, 2], 3), ([2, 0, 2], 2), ([40, 40, 3], 40), ([60, 2, 3], 60), ([90, 2, 3], 3), ([90, 2, 0], 0), ([5, 0, 0], 0)],
)
def test_adapters_with_few_rows_go_through_one_batched_product(rows: list[int], batched: int) -> None:
    segments = Segments.of_slots([-1] + [slot for slot, count in enumerate(rows) for _ in range(count)])
    (stack, *_) = _two_layers(together=True).stacks
    share = cpu._share(segments, stack)
    assert (share.height, share.gathered is None) == (batched, rows == [4, 4, 4] or not batched)
    assert [item.end - item.start for item in share.alone] == [count for count in rows if count > (cpu.BATCHED_ROWS if batched else 0)]


@pytest.mark.parametrize("rows", [[2, 2, 2], [20, 20, 20], [3, 1, 30], [90, 0, 2]])
def test_a_base_of_fewer_bits_gets_what_its_bits_can_hold(rows: list[int]) -> None:
    slots = [-1, *(slot for slot, count in enumerate(rows) for _ in range(count))]
    x, weights, segments = torch.randn(len(slots), IN).bfloat16(), _two_layers(together=True), Segments.of_slots(slots)
    fused = torch.randn(len(slots), 16).bfloat16()
    expected = [part.float() for part in fused.split([10, 6], dim=1)]
    for y, site in zip(expected, weights.sites, strict=True):
        assert site is not None
        reference.add_lora(x.float(), y, segments, site)
    add_lora_slices(x, fused.split([10, 6], dim=1), segments, weights)
    torch.testing.assert_close(fused.float(), torch.cat(expected, dim=1), atol=0.25, rtol=0.05)


def test_neighbouring_As_are_one_product_and_others_are_not() -> None:
    assert [len(stack.slices) for stack in _two_layers(together=True).stacks] == [2, 1]
    assert [len(stack.slices) for stack in _two_layers(together=False).stacks] == [1, 1, 1]


def test_numbers_that_are_not_finite_stay_with_their_adapter_in_a_batched_product() -> None:
    x, weights, segments = torch.randn(6, IN), _two_layers(together=True), Segments.of_slots([0, 0, 0, 2, 2, -1])
    for site in weights.sites:
        assert site is not None
        site.stacks[0].A[:2].fill_(torch.nan)
    fused = torch.randn(6, 16)
    add_lora_slices(x, fused.split([10, 6], dim=1), segments, weights)
    assert not fused[:3].isfinite().any() and bool(fused[3:].isfinite().all())


@settings(deadline=None, max_examples=40)
@given(slots_of_rows, ranks)
def test_the_backward_adds_each_adapters_own_gradients_to_its_slices(slots: list[int], ranks: list[int]) -> None:
    x, grad_y = _tensors(len(slots))
    segments = Segments.of_slots(slots)
    sides = [[_weights(rank, seed, grads=True) if rank else None for seed, rank in enumerate(ranks)] for _ in range(2)]
    gradients = [torch.zeros_like(x), torch.zeros_like(x)]
    reference.lora_backward(x, grad_y, segments, SiteWeights(sides[0]), gradients[0])
    cpu.lora_backward(x, grad_y, segments, SiteWeights(sides[1]), gradients[1])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)
    for expected, got in zip(*sides, strict=True):
        if expected is not None and got is not None:
            torch.testing.assert_close(got.grad_A, expected.grad_A, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(got.grad_Bt, expected.grad_Bt, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dropout", [None, Dropout(0.5, seed=3)])
def test_gradients_equal_those_of_autograd_over_the_formula(dropout: Dropout | None) -> None:
    x, y = _tensors(6)
    lora = _weights(4, 1, grads=True, dropout=dropout)
    a, bt = lora.A.clone().requires_grad_(), lora.Bt.clone().requires_grad_()
    kept = torch.ones(4, IN) if dropout is None else dropout.keep(x[2:])
    plain_x = x.clone().requires_grad_()
    plain = torch.cat([y[:2], y[2:] + 0.5 * ((plain_x[2:] * kept) @ a.t()) @ bt])
    plain.square().sum().backward()
    ours_x = x.clone().requires_grad_()
    segments = Segments((Segment(2, 6, 0),), 6)
    ours = lora_with_gradients(ours_x, y.clone(), segments, SiteWeights([lora]), torch.zeros((), requires_grad=True))
    ours.square().sum().backward()
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(ours_x.grad, plain_x.grad)
    torch.testing.assert_close(lora.grad_A, a.grad)
    torch.testing.assert_close(lora.grad_Bt, bt.grad)


def test_a_broken_adapter_in_company_changes_no_bit_of_its_neighbours() -> None:
    x, y = _tensors(12)
    segments = Segments.of_slots([0] * 4 + [1] * 4 + [-1] * 4)
    results = []
    for broken in (False, True):
        mine, other = _weights(4, 0, grads=True), _weights(4, 1, grads=True)
        if broken:
            other.A.fill_(torch.nan)
        out = y.clone()
        cpu.add_lora(x, out, segments, SiteWeights([mine, other]))
        gradient = torch.zeros_like(x)
        cpu.lora_backward(x, out, segments, SiteWeights([mine, other]), gradient)
        results.append((out[:4], out[8:], gradient[:4], mine.grad_A, mine.grad_Bt))
    for alone, beside in zip(*results, strict=True):
        assert alone is not None and beside is not None and torch.equal(alone, beside)


def test_segments_refuse_overlap_and_rows_of_another_pass() -> None:
    with pytest.raises(ValueError, match="without overlap"):
        Segments((Segment(0, 3, 0), Segment(2, 4, 1)), 4)
    x, y = _tensors(3)
    with pytest.raises(ValueError, match="the pass has 4 rows"):
        add_lora(x, y, Segments((), 4), SiteWeights([]))


def test_a_selection_keeps_each_row_with_its_adapter() -> None:
    chosen = Segments.of_slots([-1, 0, 0, 1, 1, 1]).select([0, 2, 3, 5])
    assert chosen == Segments((Segment(1, 2, 0), Segment(2, 4, 1)), 4)
