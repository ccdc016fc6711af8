"""The path for CPUs: one kernel for all short segments of adapters that stand side by side, torch's products for the rest.

Torch multiplies adapters with enough rows in one batched product, else a segment at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mint_stream.kernels import native
from mint_stream.kernels.segments import LoraWeights, Segment, Segments, SharedStack, SiteWeights, SliceWeights

BATCHED_ROWS = 64
"""Adapters with up to this many rows in a pass may go through one batched product; longer segments fill the cores by themselves."""
TALL_ROWS = 16
"""From so many rows an adapter on, products are made in the base's dtype: its matrix units and fewer bytes of x and y outweigh a cast of
the adapter. With fewer rows the adapter's own float32 is faster, for torch's small products of other kinds are slow."""
PADDED_ROWS = 4
"""How many times its rows a batched product may compute: they are filled up to the longest."""


def add_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    """As reference.add_lora."""
    add_lora_slices(x, (y,), segments, SliceWeights((weights,)))


def add_lora_slices(x: Tensor, ys: Sequence[Tensor], segments: Segments, weights: SliceWeights) -> None:
    """add_lora of each of ys [rows, out] with its own site's weights; all sites read the same x. ys may be columns of one tensor."""
    for stack in weights.stacks:
        _add_stack(x, ys, stack, _share(segments, stack, native.takes_lora(x, ys, stack)))
    for y, site in zip(ys, weights.sites, strict=True):
        if site is not None and not site.stacks:
            for segment, lora in site.pairs(segments):
                h = x[segment.start : segment.end].to(lora.A.dtype) @ lora.A.t()
                _add_product(y[segment.start : segment.end], h * lora.scaling, lora.Bt)


@dataclass(frozen=True)
class _Gathered:
    """Rows brought together for a batched product of `slots · height` places."""

    rows: Tensor
    """[slots · height]: which row of the pass goes where. An adapter with fewer rows repeats one, its outcome there is not used."""
    kept: Tensor
    """Places whose outcome is used."""
    kept_rows: Tensor
    """The rows of the pass that these are for."""


@dataclass(frozen=True)
class _Share:
    """The rows of a pass that belong to a stack's adapters. `alone`: segments multiplied one by one."""

    alone: tuple[Segment, ...]
    height: int = 0
    """Rows an adapter of the batched product; 0: there is none."""
    start: int = 0
    """The batched rows are start ≤ row < start + slots · height, unless they are gathered."""
    gathered: _Gathered | None = None
    short: Tensor | None = None
    """int64 [segments, 3], (start, end, slot of the stack): what the kernel takes, none of it torch's."""


def _share(segments: Segments, stack: SharedStack, by_kernel: bool = False) -> _Share:
    key = ("cpu", stack.first, stack.slots, by_kernel)
    if key not in segments.placed:
        ours = [item for item in segments.items if stack.first <= item.slot < stack.first + stack.slots and item.end > item.start]
        least = TALL_ROWS if by_kernel else 0
        share = _by_torch([item for item in ours if item.end - item.start >= least], stack.first, stack.slots)
        short = [(item.start, item.end, item.slot - stack.first) for item in ours if item.end - item.start < least]
        segments.placed[key] = replace(share, short=torch.tensor(short)) if short else share
    found: _Share = segments.placed[key]
    return found


def _by_torch(ours: Sequence[Segment], first: int, slots: int) -> _Share:
    rows: dict[int, list[int]] = {}
    for item in ours:
        rows.setdefault(item.slot, []).extend(range(item.start, item.end))
    batched = _batched(rows, slots)
    if len(batched) < 2:
        return _Share(tuple(ours))
    alone = tuple(item for item in ours if item.slot not in batched)
    height = max(map(len, batched.values()))
    begin = min(min(found) for found in batched.values())
    placed = [row for slot in range(first, first + slots) for row in _padded(batched.get(slot, ()), height, begin)]
    if placed == list(range(begin, begin + slots * height)):
        return _Share(alone, height, begin)
    kept = [(slot - first) * height + at for slot, found in sorted(batched.items()) for at in range(len(found))]
    return _Share(alone, height, begin, _Gathered(torch.tensor(placed), torch.tensor(kept), torch.tensor([placed[at] for at in kept])))


def _batched(rows: Mapping[int, list[int]], slots: int) -> dict[int, list[int]]:
    """The slots whose rows are computed together: the shorter ones, as many as padding allows."""
    chosen = sorted((slot for slot in rows if len(rows[slot]) <= BATCHED_ROWS), key=lambda slot: len(rows[slot]))
    total = sum(len(rows[slot]) for slot in chosen)
    while chosen and slots * len(rows[chosen[-1]]) > PADDED_ROWS * total:
        total -= len(rows[chosen.pop()])
    return {slot: rows[slot] for slot in sorted(chosen)}


def _padded(rows: Sequence[int], height: int, otherwise: int) -> list[int]:
    return [*rows, *[rows[0] if rows else otherwise] * (height - len(rows))]


def _add_stack(x: Tensor, ys: Sequence[Tensor], stack: SharedStack, share: _Share) -> None:
    if share.short is not None:
        native.add_lora(x, ys, stack, share.short)
    for segment in share.alone:
        at, rows = segment.slot - stack.first, slice(segment.start, segment.end)
        dtype = _product_dtype(x, stack, segment.end - segment.start)
        h = x[rows].to(dtype) @ stack.A[at].to(dtype).t()
        for part in stack.slices:
            _add_product(ys[part.output][rows], h[:, part.begin : part.end], part.Bt[at].to(dtype))
    if share.gathered is not None:
        _add_gathered(x, ys, stack, share.height, share.gathered)
    elif share.height:
        _add_in_place(x, ys, stack, share.height, share.start)


def _add_in_place(x: Tensor, ys: Sequence[Tensor], stack: SharedStack, height: int, start: int) -> None:
    shape, rows = (stack.slots, height), slice(start, start + stack.slots * height)
    dtype = _product_dtype(x, stack, height)
    h = x[rows].to(dtype).view(*shape, -1).bmm(stack.A.to(dtype).transpose(1, 2))
    for part in stack.slices:
        _add_product(ys[part.output][rows].view(*shape, -1), h[..., part.begin : part.end], part.Bt.to(dtype))


def _add_gathered(x: Tensor, ys: Sequence[Tensor], stack: SharedStack, height: int, at: _Gathered) -> None:
    dtype = _product_dtype(x, stack, height)
    h = x.index_select(0, at.rows).to(dtype).view(stack.slots, height, -1).bmm(stack.A.to(dtype).transpose(1, 2))
    for part in stack.slices:
        out = h[..., part.begin : part.end].bmm(part.Bt.to(dtype)).flatten(0, 1).index_select(0, at.kept)
        ys[part.output].index_add_(0, at.kept_rows, out.to(ys[part.output].dtype))


def _product_dtype(x: Tensor, stack: SharedStack, rows: int) -> torch.dtype:
    """In which dtype products with `rows` rows an adapter are made."""
    return x.dtype if rows >= TALL_ROWS else stack.A.dtype


def _add_product(y: Tensor, h: Tensor, bt: Tensor) -> None:
    """y += h bt, [rows, ...] or [slots, rows, ...], where y may have fewer bits than the product."""
    if y.dtype != h.dtype:
        y.add_(h @ bt)
    elif y.dim() == 2:
        y.addmm_(h, bt)
    else:
        y.baddbmm_(h, bt)


def train_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    """As reference.add_lora, with dropout. A segment's products depend on its own rows alone, whoever shares the pass."""
    for segment, lora in weights.pairs(segments):
        h = _shrunk(_dropped(x[segment.start : segment.end], lora), lora.A)
        y[segment.start : segment.end].addmm_(h, lora.Bt, alpha=lora.scaling)


def lora_backward(x: Tensor, grad_y: Tensor, segments: Segments, weights: SiteWeights, grad_x: Tensor | None) -> None:
    """As reference.lora_backward."""
    for segment, lora in weights.pairs(segments):
        _segment_backward(x, grad_y, segment, lora, grad_x)


def _segment_backward(x: Tensor, grad_y: Tensor, segment: Segment, lora: LoraWeights, grad_x: Tensor | None) -> None:
    rows = slice(segment.start, segment.end)
    at, grad = _dropped(x[rows], lora), grad_y[rows]
    if lora.grad_Bt is not None:
        lora.grad_Bt.addmm_(_shrunk(at, lora.A).t(), grad, alpha=lora.scaling)
    grad_h = _shrunk(grad, lora.Bt)
    if lora.grad_A is not None:
        lora.grad_A.addmm_(grad_h.t(), at, alpha=lora.scaling)
    if grad_x is None:
        return
    if lora.dropout is None:
        grad_x[rows].addmm_(grad_h, lora.A, alpha=lora.scaling)
    else:
        through = (grad_h @ lora.A).mul_(lora.scaling)
        grad_x[rows] += through * lora.dropout.keep(through)


def _shrunk(x: Tensor, a: Tensor) -> Tensor:
    """x aᵀ [rows, r], as (a xᵀ)ᵀ with a in rows: over 1,000 inputs and few columns take MKL 30 times as long in any other layout."""
    return (a.contiguous() @ x.t()).t()


def _dropped(x: Tensor, lora: LoraWeights) -> Tensor:
    return x if lora.dropout is None else x * lora.dropout.keep(x)
