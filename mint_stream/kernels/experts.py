"""LoRA inside the experts of a mixture: its rows are (row of the pass, expert) pairs, sorted so that each product reads one expert."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from mint_stream.kernels.segments import LoraWeights, Segments, SiteWeights


@dataclass(frozen=True)
class ExpertGroup:
    """Pairs start ≤ p < end are rows of the adapter in `slot` (-1: of none) at one expert."""

    start: int
    end: int
    expert: int
    slot: int


@dataclass(frozen=True)
class ExpertPairs:
    """The pairs of one layer in one pass, by expert and then by adapter."""

    order: Tensor
    """[pairs]: pair p is entry order[p] of the router's choices, read row by row."""
    groups: tuple[ExpertGroup, ...]
    experts: int
    """How many experts the layer has."""
    chosen: Tensor
    """[rows, experts a row]: the router's choices."""
    segments: Segments
    kept: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)
    """What a device makes of the choices, once for all of the layer's matrices."""

    @classmethod
    def of(cls, chosen: Tensor, segments: Segments, experts: int) -> "ExpertPairs":
        """The pairs of a router's choices, chosen [rows, experts a row], of a pass with these segments."""
        of_rows = segments.slots()
        slots = torch.tensor(of_rows, device=chosen.device)
        wide = max(of_rows, default=-2) + 2
        keys = chosen * wide + slots[:, None] + 1
        ordered, order = keys.reshape(-1).sort(stable=True)
        found, counts = torch.unique_consecutive(ordered, return_counts=True)
        groups, start = [], 0
        for key, count in zip(found.tolist(), counts.tolist(), strict=True):
            groups.append(ExpertGroup(start, start + count, key // wide, key % wide - 1))
            start += count
        return cls(order, tuple(groups), experts, chosen, segments)

    def by_expert(self) -> list[tuple[int, int, int]]:
        """(start, end, expert): the pairs of each expert, whoever their adapters are."""
        runs = [list(run) for _, run in groupby(self.groups, key=lambda group: group.expert)]
        return [(run[0].start, run[-1].end, run[0].expert) for run in runs]

    def adapted(self, weights: SiteWeights) -> list[tuple[ExpertGroup, LoraWeights]]:
        """Each group that this layer adapts, with its adapter's weights for all experts."""
        return [(group, lora) for group in self.groups if group.slot >= 0 and (lora := weights.at[group.slot]) is not None]


def add_expert_lora(x: Tensor, y: Tensor, pairs: ExpertPairs, weights: SiteWeights) -> None:
    """As reference.add_expert_lora."""
    for group, lora in pairs.adapted(weights):
        rank = lora.rank // pairs.experts
        rows, at = slice(group.start, group.end), slice(group.expert * rank, (group.expert + 1) * rank)
        part = (x[rows].to(lora.A.dtype) @ lora.A[at].t()) @ lora.Bt[at]
        y[rows].add_(part.to(y.dtype), alpha=lora.scaling)
