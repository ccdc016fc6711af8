"""Expand: each row's few numbers to its outputs, y += h Bt, adding up shrink's planes on the way in."""

import triton
import triton.language as tl
from torch import Tensor

from mint_stream.kernels.tiles import Tile
from mint_stream.kernels.worklist import Launch

SIZES = ["total_rows", "output_units", "planes"]
STAGES = 1


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]  # triton ships no types
def expand_kernel(
    h: tl.tensor,
    y: tl.tensor,
    items: tl.tensor,
    table: tl.tensor,
    total_rows: tl.tensor,
    output_units: tl.tensor,
    planes: tl.tensor,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PLANES: tl.constexpr,
) -> None:
    """y[t, o] += Σ_r (scaling_s · Σ_p h[p, t, r]) Bt_s[r, o] for the rows t of work item program_id(0), outputs of tile program_id(1).

    h [planes, total_rows, RANK] fp32, planes ≤ PLANES, added in their order; y [total_rows, N], N = output_units · UNIT;
    items int32 [items, 4]; table int64 [slots, 4]. Rows in no item are neither read nor written.
    """
    item = tl.program_id(0)
    count = tl.load(items + item * 4 + 1)
    if count == 0:
        return
    start, slot = tl.load(items + item * 4), tl.load(items + item * 4 + 2)
    bt = tl.multiple_of(tl.load(table + slot * 4 + 1).to(tl.pointer_type(y.dtype.element_ty)), 16)
    rank = tl.load(table + slot * 4 + 2).to(tl.int32)
    scaling = tl.load(table + slot * 4 + 3).to(tl.int32).to(tl.float32, bitcast=True)
    width = output_units * UNIT
    t, r = tl.arange(0, ROWS), tl.arange(0, RANK)
    o = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = (start + t).to(tl.int64)
    weights = tl.load(bt + r[:, None] * width + o[None, :], mask=(r < rank)[:, None] & (o < width)[None, :], other=0.0)
    at = h + rows[:, None] * RANK + r[None, :]
    written = (t < count)[:, None]
    sums = tl.load(at, mask=written, other=0.0)
    for plane in tl.static_range(1, PLANES):
        sums += tl.load(at + total_rows.to(tl.int64) * RANK * plane, mask=written & (plane < planes), other=0.0)
    sums = tl.where((r < rank)[None, :], sums * scaling, 0.0)
    added = tl.dot(sums.to(y.dtype.element_ty), weights, input_precision="ieee")
    out = y + rows[:, None] * width + o[None, :]
    mask = (t < count)[:, None] & (o < width)[None, :]
    tl.store(out, (tl.load(out, mask=mask, other=0.0).to(tl.float32) + added).to(y.dtype.element_ty), mask=mask)


def expand(h: Tensor, y: Tensor, items: Tensor, table: Tensor, launch: Launch) -> None:
    """Add to y [rows, out] what shrink left in h [planes, rows, tile rank]. Reference: reference.expand of h summed over planes."""
    at = launch.tile
    if h.shape != (launch.planes, y.shape[0], at.rank):
        raise ValueError(f"expand to {y.shape[0]} rows reads h [{launch.planes}, {y.shape[0]}, {at.rank}], not {list(h.shape)}")
    if y.shape[1] % at.unit:
        raise ValueError(f"expand writes {at.unit} outputs at a time, and y has {y.shape[1]}")
    expand_kernel[(len(launch.items), -(-y.shape[1] // at.outputs))](
        *(h, y, items, table, y.shape[0], y.shape[1] // at.unit, launch.planes),
        **expand_constants(at),
        num_warps=at.warps,
        num_stages=STAGES,
    )


def expand_constants(at: Tile) -> dict[str, int]:
    """What is compiled into the variant."""
    return {"UNIT": at.unit, "ROWS": at.rows, "RANK": at.rank, "OUTPUTS": at.outputs, "PLANES": at.max_planes}
