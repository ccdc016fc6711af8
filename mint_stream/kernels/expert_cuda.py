"""LoRA inside the experts of a mixture on GPUs: shrink and expand over work items that the device makes under a bound the host knows.

The host never learns which experts were chosen, so nothing waits: the number of CTAs depends on the pass's shape alone.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mint_stream.kernels.cuda import fits, takes
from mint_stream.kernels.expand import expand
from mint_stream.kernels.experts import ExpertPairs
from mint_stream.kernels.placing import bits_of, placed
from mint_stream.kernels.segments import LoraWeights, Segments, SiteWeights
from mint_stream.kernels.shrink import shrink
from mint_stream.kernels.tables import column_tables
from mint_stream.kernels.tiles import ROWS, tile
from mint_stream.kernels.worklist import PADDING, Launch, planes_of


@dataclass(frozen=True)
class DevicePairs:
    """What experts.ExpertPairs says of a router's choices, as tensors on its device."""

    order: Tensor
    """[pairs]: pair p is entry order[p] of the router's choices, read row by row. The order of ExpertPairs."""
    items: Tensor
    """int32 [bound, 4]: first pair, pairs (0: padding), expert · (slots + 1) + slot + 1, nothing."""
    experts: int
    slots: int

    @classmethod
    def of(cls, chosen: Tensor, segments: Segments, experts: int, slots: int) -> "DevicePairs":
        """The pairs of chosen [rows, experts a row] in a pass with adapters in `slots` slots. No step of it waits for the device."""
        wide = slots + 1
        ordered, order = (chosen * wide + _row_slots(segments, chosen.device)[:, None] + 1).reshape(-1).sort(stable=True)
        every = torch.arange(experts * wide, device=chosen.device)
        first, last = (torch.searchsorted(ordered, every, right=right) for right in (False, True))
        tiles = torch.where(every % wide > 0, (last - first + ROWS[0] - 1) // ROWS[0], 0)
        return cls(order, _items(first, last, tiles, pair_bound(ordered.numel(), experts, slots)), experts, slots)


def pair_bound(pairs: int, experts: int, slots: int) -> int:
    """Items that always suffice: a full tile for every so many pairs, and a started one for each adapter at each expert."""
    return max(1, pairs // ROWS[0] + min(pairs, experts * slots))


def _items(first: Tensor, last: Tensor, tiles: Tensor, bound: int) -> Tensor:
    """Item i is a tile of the key whose tiles are i's among all tiles in a row; beyond them all it is padding."""
    ends = tiles.cumsum(0)
    at = torch.arange(bound, device=first.device)
    key = torch.searchsorted(ends, at, right=True).clamp_(max=len(ends) - 1)
    start = first[key] + (at - ends[key] + tiles[key]) * ROWS[0]
    count = torch.where(at < ends[-1], (last[key] - start).clamp_(0, ROWS[0]), 0)
    return torch.stack([start, count, key, torch.zeros_like(at)], 1).int()


def _row_slots(segments: Segments, device: torch.device) -> Tensor:
    if ("slots", device) not in segments.placed:
        segments.placed["slots", device] = placed(torch.tensor(segments.slots(), dtype=torch.int64), device)
    slots: Tensor = segments.placed["slots", device]
    return slots


def device_pairs(pairs: ExpertPairs, slots: int) -> DevicePairs:
    """The same pairs for adapters in `slots` slots, made once for all matrices of the layer."""
    if slots not in pairs.kept:
        pairs.kept[slots] = DevicePairs.of(pairs.chosen, pairs.segments, pairs.experts, slots)
    found: DevicePairs = pairs.kept[slots]
    return found


def add_expert_lora(x: Tensor, y: Tensor, pairs: DevicePairs, weights: SiteWeights, segments: Segments) -> None:
    """As reference.add_expert_lora: x [pairs, in], y [pairs, out], an adapter's A [experts · r, in] and Bt [experts · r, out]."""
    if not takes(x, y, weights, pairs.experts):
        raise ValueError("the CUDA kernels need contiguous, 16-byte aligned x, y, A and Bt of one dtype, and ranks up to 128")
    if not all(lora is None or fits(lora, x, y) for lora in weights.at):
        raise ValueError(f"x {list(x.shape)} and y {list(y.shape)} do not fit the adapters' weights of {pairs.experts} experts")
    rank = weights.max_rank // pairs.experts
    if rank == 0:
        return
    at, bound = tile(ROWS[0], rank, x.dtype), pairs.items.shape[0]
    planes, steps = planes_of(at, x.shape[1], bound)
    launch = Launch(at, (PADDING,) * bound, planes, steps)
    h = torch.empty(planes, 1, x.shape[0], at.rank, dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.get_device()):  # -1, no change, where triton interprets on the CPU
        table = _table(weights, pairs, x.device)
        shrink(x, h, pairs.items, table, launch)
        expand(h, [y], pairs.items, table, column_tables(segments, [y], launch), launch)


def _table(weights: SiteWeights, pairs: DevicePairs, device: torch.device) -> Tensor:
    """int64 [1, experts · (slots + 1), 4], as shrink and expand read it. One copy for each set of adapters."""
    kept = cast(dict[object, Tensor], weights.placed)
    key = (device, "experts", pairs.experts)
    if key not in kept:
        at = (None, *weights.at)
        rows = [(0, 0, 0, 0) if lora is None else _row(lora, expert, pairs.experts) for expert in range(pairs.experts) for lora in at]
        kept[key] = placed(torch.tensor(rows, dtype=torch.int64)[None], device)
    return kept[key]


def _row(lora: LoraWeights, expert: int, experts: int) -> tuple[int, int, int, int]:
    rank = lora.rank // experts
    a, bt = (side.data_ptr() + expert * rank * side.shape[1] * side.element_size() for side in (lora.A, lora.Bt))
    return a, bt, rank, bits_of(lora.scaling)
