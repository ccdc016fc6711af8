"""What a LoRA kernel works on: row segments of a pass, and the weights one layer has for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
class Segments:
    """Which rows belong to which adapter: ascending, not overlapping. Rows in no segment are the bare base's."""

    items: tuple[Segment, ...]
    rows: int
    placed: dict[object, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Work lists on devices, made once a pass for all layers that share them."""

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


class SiteWeights:
    """What the adapters of a batch have for one layer: `at[slot]`, None where an adapter does not target it."""

    def __init__(self, at: Sequence[LoraWeights | None]) -> None:
        self.at = tuple(at)
        self.ranks = tuple(0 if weights is None else weights.rank for weights in self.at)
        self.max_rank = max(self.ranks, default=0)
        self.placed: dict[torch.device, Tensor] = {}
        self._stack: tuple[Tensor, Tensor] | None = None

    def pairs(self, segments: Segments) -> list[tuple[Segment, LoraWeights]]:
        """Each segment that this layer adapts, with its weights, in row order."""
        return [(item, weights) for item in segments.items if (weights := self.at[item.slot]) is not None and item.end > item.start]

    def stack(self) -> tuple[Tensor, Tensor]:
        """All slots in two tensors: Aᵀ [slots, in, R] and Bt [slots, R, out], zero where ranks are shorter or nothing is adapted."""
        if self._stack is None:
            some = next(weights for weights in self.at if weights is not None)
            a = some.A.new_zeros(len(self.at), some.A.shape[1], self.max_rank)
            b = some.Bt.new_zeros(len(self.at), self.max_rank, some.Bt.shape[1])
            for slot, weights in enumerate(self.at):
                if weights is not None:
                    a[slot, :, : weights.rank] = weights.A.t() * weights.scaling
                    b[slot, : weights.rank] = weights.Bt
            self._stack = (a, b)
        return self._stack
