"""Expand: each row's few numbers to its outputs, y += h Bt, adding up shrink's planes on the way in."""

from collections.abc import Sequence
from itertools import chain

import triton
import triton.language as tl
from torch import Tensor

from mint_stream.kernels.tiles import Tile
from mint_stream.kernels.worklist import Launch

SIZES = ["total_rows", "planes", "slots", "slices"]
STAGES = 1
OUTPUTS_AT_ONCE = 4
"""Output tensors of one launch; sites with more slices take several."""


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]  # triton ships no types
def expand_kernel(
    h: tl.tensor,
    y0: tl.tensor,
    y1: tl.tensor,
    y2: tl.tensor,
    y3: tl.tensor,
    items: tl.tensor,
    table: tl.tensor,
    columns: tl.tensor,
    total_rows: tl.tensor,
    planes: tl.tensor,
    slots: tl.tensor,
    slices: tl.tensor,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PLANES: tl.constexpr,
) -> None:
    """y_c[t, o] += Σ_r (scaling_cs · Σ_p h[p, c, t, r]) Bt_cs[r, o] for the rows t of work item program_id(0), OUTPUTS outputs of slice c.

    h [planes, slices, total_rows, RANK] fp32, planes ≤ PLANES, added in their order; items int32 [items, 4]; table int64
    [slices, slots, 4]; columns int32 [., 4], one line for each program_id(1): slice, first output, width and row stride of y_c in units
    of UNIT. y_c is argument c modulo 4. Rows in no item, or without weights in the slice, are neither read nor written.
    """
    item, at = tl.program_id(0), columns + tl.program_id(1) * 4
    start, count = tl.load(items + item * 4), tl.load(items + item * 4 + 1)
    piece, first, width = tl.load(at), tl.load(at + 1), tl.load(at + 2) * UNIT
    entry = table + (piece * slots + tl.load(items + item * 4 + 2)) * 4
    rank = tl.load(entry + 2).to(tl.int32)
    if count * rank == 0:
        return
    bt = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(y0.dtype.element_ty)), 16)
    scaling = tl.load(entry + 3).to(tl.int32).to(tl.float32, bitcast=True)
    y = y0
    if piece % 4 == 1:
        y = y1
    if piece % 4 == 2:
        y = y2
    if piece % 4 == 3:
        y = y3
    y = tl.multiple_of(y, 16)
    t, r = tl.arange(0, ROWS), tl.arange(0, RANK)
    o = tl.multiple_of(first, UNIT) + tl.arange(0, OUTPUTS)
    rows = (start + t).to(tl.int64)
    weights = tl.load(bt + r[:, None] * width + o[None, :], mask=(r < rank)[:, None] & (o < width)[None, :], other=0.0)
    parts = h + (piece.to(tl.int64) * total_rows + rows)[:, None] * RANK + r[None, :]
    written = (t < count)[:, None]
    sums = tl.load(parts, mask=written, other=0.0)
    for plane in tl.static_range(1, PLANES):
        sums += tl.load(parts + total_rows.to(tl.int64) * slices * RANK * plane, mask=written & (plane < planes), other=0.0)
    sums = tl.where((r < rank)[None, :], sums * scaling, 0.0)
    added = tl.dot(sums.to(y.dtype.element_ty), weights, input_precision="tf32x3")
    out = y + rows[:, None] * (tl.load(at + 3) * UNIT) + o[None, :]
    mask = written & (o < width)[None, :]
    tl.store(out, (tl.load(out, mask=mask, other=0.0).to(tl.float32) + added).to(y.dtype.element_ty), mask=mask)


def expand(h: Tensor, ys: Sequence[Tensor], items: Tensor, table: Tensor, columns: Sequence[Tensor], launch: Launch) -> None:
    """Add to each slice's y [rows, out] what shrink left in h [planes, slices, rows, tile rank]; `columns` are column_lines on the device.

    Reference: reference.expand for each slice, of h summed over planes.
    """
    at, (slices, slots, _), rows = launch.tile, table.shape, ys[0].shape[0]
    if h.shape != (launch.planes, slices, rows, at.rank) or len(ys) != slices:
        raise ValueError(f"expand of {len(ys)} slices to {rows} rows reads h {[launch.planes, slices, rows, at.rank]}, not {list(h.shape)}")
    for group, lines in enumerate(columns):
        some = list(ys[group * OUTPUTS_AT_ONCE : (group + 1) * OUTPUTS_AT_ONCE])
        expand_kernel[(len(launch.items), lines.shape[0])](
            *(h, *some, *some[:1] * (OUTPUTS_AT_ONCE - len(some)), items, table, lines, rows, launch.planes, slots, slices),
            **expand_constants(at),
            num_warps=at.warps,
            num_stages=STAGES,
        )


def column_lines(ys: Sequence[Tensor], at: Tile) -> list[list[tuple[int, int, int, int]]]:
    """For each launch of expand its `columns`: no CTA is without outputs, however the slices' widths differ."""
    uneven = [y.shape[1] for y in ys if y.shape[1] % at.unit or y.stride(0) % at.unit]
    if uneven:
        raise ValueError(f"expand writes {at.unit} outputs at a time, and y has {uneven[0]}")
    lines = [
        [(piece, first, y.shape[1] // at.unit, y.stride(0) // at.unit) for first in range(0, y.shape[1], at.outputs)]
        for piece, y in enumerate(ys)
    ]
    return [list(chain(*lines[start : start + OUTPUTS_AT_ONCE])) for start in range(0, len(ys), OUTPUTS_AT_ONCE)]


def expand_constants(at: Tile) -> dict[str, int]:
    """What is compiled into the variant."""
    return {"UNIT": at.unit, "ROWS": at.rows, "RANK": at.rank, "OUTPUTS": at.outputs, "PLANES": at.max_planes}
