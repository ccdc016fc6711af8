"""What a LoRA kernel works on: row segments of a pass, and the weights one layer has for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dropout:
    """Drops inputs of a LoRA layer in training. The mask depends on (seed, segment's own rows) alone, never on neighbours."""

    probability: float
    seed: int
    """Made by the caller from (job seed, step, site)."""

    def keep(self, x: Tensor) -> Tensor:
        """What to multiply a segment's x [rows, in] with: 0 or 1 / (1 - probability)."""
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.rand(x.shape, generator=generator) >= self.probability
        return (kept / (1.0 - self.probability)).to(x)


@dataclass(frozen=True)
class LoraWeights:
    """One adapter in one layer: y += scaling · (x Aᵀ) Bt. Serving folds the scaling into Bt and leaves `scaling` at 1.

    Training gives gradient slices of the same shapes as A and Bt (any strides); the backward pass adds to them in place.
    """

    A: Tensor
    """[r, in]"""
    Bt: Tensor
    """[r, out]; a transposed view of a [out, r] master is fine."""
    scaling: float = 1.0
    grad_A: Tensor | None = None
    grad_Bt: Tensor | None = None
    dropout: Dropout | None = None

    @property
    def rank(self) -> int:
        """r"""
        return self.A.shape[0]


@dataclass(frozen=True)
class Segment:
    """Rows start ≤ row < end of a pass belong to the adapter in `slot`."""

    start: int
    end: int
    slot: int


@dataclass(frozen=True)
class Bound:
    """Work of a pass whose shape alone is known, a graph's: the items are read from where they are, each time that it is replayed."""

    items: Tensor
    """int32 [most items, 4]: first row, rows (0: padding), slot, nothing."""
    rank: int
    """The largest of any adapter."""


@dataclass(frozen=True)
class Segments:
    """Which rows belong to which adapter: ascending, not overlapping. Rows in no segment are the bare base's."""

    items: tuple[Segment, ...]
    rows: int
    placed: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)
    """Work lists, made once a pass for all layers that share them."""
    bound: Bound | None = None
    """Instead of `items`."""

    def __post_init__(self) -> None:
        last = 0
        for item in self.items:
            if not last <= item.start <= item.end <= self.rows:
                raise ValueError(f"segments must ascend within {self.rows} rows without overlap; {item} follows row {last}")
            last = item.end

    @classmethod
    def of_slots(cls, slots: Sequence[int]) -> "Segments":
        """Segments of a pass whose row i belongs to adapter slots[i]; -1 is the bare base."""
        items: list[Segment] = []
        for row, slot in enumerate(slots):
            if slot < 0:
                continue
            if items and items[-1].slot == slot and items[-1].end == row:
                items[-1] = Segment(items[-1].start, row + 1, slot)
            else:
                items.append(Segment(row, row + 1, slot))
        return cls(tuple(items), len(slots))

    def slots(self) -> list[int]:
        """Each row's slot, -1 for the bare base: what `of_slots` was given."""
        slots = [-1] * self.rows
        for item in self.items:
            slots[item.start : item.end] = [item.slot] * (item.end - item.start)
        return slots

    def select(self, rows: Sequence[int]) -> "Segments":
        """The segments of a selection of this pass's rows, for layers that see only those (lm_head)."""
        slots = self.slots()
        return Segments.of_slots([slots[row] for row in rows])


@dataclass(frozen=True)
class Stack:
    """Adapters of one shape side by side in memory: slot first + i has A[i] and Bt[i], scaling folded into Bt."""

    first: int
    A: Tensor
    """[slots, r, in], any strides."""
    Bt: Tensor
    """[slots, r, out], any strides."""

    @property
    def slots(self) -> int:
        """How many adapters."""
        return self.A.shape[0]


class SiteWeights:
    """What the adapters of a batch have for one layer: `at[slot]`, None where an adapter does not target it.

    Built from single weights, or from stacks, whose adapters then also go through batched products.
    """

    def __init__(self, at: Sequence[LoraWeights | None] = (), stacks: Sequence[Stack] = ()) -> None:
        self.stacks = tuple(stacks)
        self._given = tuple(at)
        self.placed: dict[torch.device, Tensor] = {}

    @cached_property
    def at(self) -> tuple[LoraWeights | None, ...]:
        """By slot."""
        found: list[LoraWeights | None] = list(self._given)
        for stack in self.stacks:
            found.extend([None] * (stack.first + stack.slots - len(found)))
            found[stack.first : stack.first + stack.slots] = [LoraWeights(a, bt) for a, bt in zip(stack.A, stack.Bt, strict=True)]
        return tuple(found)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """By slot, 0 where there is nothing."""
        return tuple(0 if weights is None else weights.rank for weights in self.at)

    @property
    def max_rank(self) -> int:
        """The largest of them."""
        return max(self.ranks, default=0)

    def pairs(self, segments: Segments) -> list[tuple[Segment, LoraWeights]]:
        """Each segment that this layer adapts, with its weights, in row order."""
        return [(item, weights) for item in segments.items if (weights := self.at[item.slot]) is not None and item.end > item.start]


class SliceWeights:
    """What the adapters of a batch have for several layers that read the same x: `sites[i]` is for the i-th output, None for none."""

    def __init__(self, sites: Sequence[SiteWeights | None]) -> None:
        self.sites = tuple(sites)

    @cached_property
    def stacks(self) -> tuple["SharedStack", ...]:
        """Every stack of every site, those joined whose As follow each other in memory."""
        alone = [
            SharedStack(stack.first, stack.A, (Slice(output, 0, stack.A.shape[1], stack.Bt),))
            for output, site in enumerate(self.sites)
            if site is not None
            for stack in site.stacks
        ]
        joined: list[SharedStack] = []
        for stack in sorted(alone, key=lambda one: (one.first, one.slices[0].output)):
            if joined and (both := joined[-1].followed_by(stack)) is not None:
                joined[-1] = both
            else:
                joined.append(stack)
        return tuple(joined)


@dataclass(frozen=True)
class Slice:
    """Ranks begin ≤ r < end of a shared stack's A belong to one output."""

    output: int
    begin: int
    end: int
    Bt: Tensor
    """[slots, end - begin, out]"""


@dataclass(frozen=True)
class SharedStack:
    """Stacks of layers that read the same x: one product of x with all their As."""

    first: int
    A: Tensor
    """[slots, Σ r, in]"""
    slices: tuple[Slice, ...]

    @property
    def slots(self) -> int:
        """How many adapters."""
        return self.A.shape[0]

    @cached_property
    def addresses(self) -> tuple[tuple[Slice, tuple[int, ...]], ...] | None:
        """Each slice with (address of Bt, its numbers a slot, begin, end, out); None unless every matrix is in one piece."""
        parts = [self.A, *(part.Bt for part in self.slices)]
        if any(one.stride()[1:] != (one.shape[2], 1) for one in parts):
            return None
        return tuple((part, (part.Bt.data_ptr(), part.Bt.stride(0), part.begin, part.end, part.Bt.shape[2])) for part in self.slices)

    def followed_by(self, other: "SharedStack") -> "SharedStack | None":
        """Both as one view, None when the other's A does not stand right behind this one's."""
        mine, theirs = self.A, other.A
        behind = mine.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()
        behind = behind and mine.storage_offset() + mine.shape[1] * mine.shape[2] == theirs.storage_offset()
        if not behind or (self.first, self.slots, mine.stride()) != (other.first, other.slots, theirs.stride()):
            return None
        (last,) = other.slices
        ranks = mine.shape[1] + theirs.shape[1]
        whole = mine.as_strided((self.slots, ranks, mine.shape[2]), mine.stride())
        return SharedStack(self.first, whole, (*self.slices, Slice(last.output, mine.shape[1], ranks, last.Bt)))
