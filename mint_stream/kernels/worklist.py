"""Which CTA does what: the host cuts a pass's segments into work items, one list for all layers that the same adapters change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mint_stream.kernels.segments import Bound, Segments
from mint_stream.kernels.tiles import RANKS, ROWS, Tile, rank_bucket, tile

BUSY_CTAS = 256
"""About two for each processor of a large GPU: with fewer, shrink splits its sum over more planes."""
INVARIANT_PLANES = 8


@dataclass(frozen=True)
class WorkItem:
    """Up to a tile's rows of one segment. `rows` 0: padding, its CTAs end at once."""

    start: int
    rows: int
    slot: int


PADDING = WorkItem(0, 0, 0)


@dataclass(frozen=True)
class Launch:
    """One shrink and one expand over `items`, whose number is a graph bucket. `planes` partial sums of `steps` tiles of inputs each."""

    tile: Tile
    items: tuple[WorkItem, ...]
    planes: int
    steps: int


def bucket(items: int) -> int:
    """The smallest of 1…8, 10, 12, 14, 16, 20, 24, 28, 32, 40, … that holds `items`: less than a quarter of it is padding."""
    step = 1 << max(0, (items - 1).bit_length() - 3)
    return -(-items // step) * step


def plan(
    segments: Segments, ranks: Sequence[int], inputs: int, dtype: torch.dtype, fixed_rows: int | None = None, slices: int = 1
) -> tuple[Launch, ...]:
    """The launches that apply adapters of `ranks` (by slot, 0 where the layer has none) over x [rows, inputs] of `dtype`.

    Law: every row of an adapted segment is in exactly one item of one launch, no other row is in any; no plane is empty.
    With `fixed_rows` (one of ROWS) a row's tile and split depend on (inputs, its own adapter's rank, dtype) alone, whoever shares the
    pass: adapters of different rank buckets then take launches of their own. A row's place in its segment is its own matter too.
    """
    if segments.bound is not None:
        return _bound_launch(segments.bound, inputs, dtype, slices)
    adapted = [item for item in segments.items if ranks[item.slot] and item.end > item.start]
    if not adapted:
        return ()
    if fixed_rows is not None:
        used = sorted({rank_bucket(ranks[item.slot]) for item in adapted})
        tiles = [tile(fixed_rows, width, dtype) for width in used]
        return tuple(_launch(_cut(segments, ranks, (at.rank,), at.rows), at, inputs, INVARIANT_PLANES) for at in tiles)
    rows = sum(item.end - item.start for item in adapted)
    height = ROWS[0] if rows <= ROWS[0] * len(adapted) else ROWS[1]
    items = _cut(segments, ranks, RANKS, height)
    at = tile(height, max(ranks[item.slot] for item in adapted), dtype)
    return (_launch(items, at, inputs, -(-BUSY_CTAS // (len(items) * slices))),)


def _bound_launch(bound: Bound, inputs: int, dtype: torch.dtype, slices: int) -> tuple[Launch, ...]:
    count = len(bound.items)
    at = tile(ROWS[0], bound.rank, dtype)
    return (Launch(at, (PADDING,) * count, *planes_of(at, inputs, count * slices)),) if count else ()


def cut(segments: Segments, height: int) -> list[WorkItem]:
    """Every adapted row, in items of up to `height`."""
    return [
        WorkItem(start, min(height, item.end - start), item.slot)
        for item in segments.items
        for start in range(item.start, item.end, height)
    ]


def _cut(segments: Segments, ranks: Sequence[int], widths: Sequence[int], height: int) -> list[WorkItem]:
    return [item for item in cut(segments, height) if ranks[item.slot] and rank_bucket(ranks[item.slot]) in widths]


def planes_of(at: Tile, inputs: int, ctas: int) -> tuple[int, int]:
    """(planes, steps of each) of a sum over `inputs` of which there are `ctas` at once."""
    return _split(at, inputs, -(-BUSY_CTAS // ctas))


def _split(at: Tile, inputs: int, planes: int) -> tuple[int, int]:
    steps = -(-inputs // at.inputs)
    share = -(-steps // min(at.max_planes, planes))
    return -(-steps // share), share


def _launch(items: list[WorkItem], at: Tile, inputs: int, planes: int) -> Launch:
    padded = tuple(items) + (PADDING,) * (bucket(len(items)) - len(items))
    return Launch(at, padded, *_split(at, inputs, planes))
