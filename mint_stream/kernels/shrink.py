"""Shrink: each row's inputs to its adapter's few numbers, h = x Aᵀ, as partial sums that expand adds up."""

import triton
import triton.language as tl
from torch import Tensor

from mint_stream.kernels.tiles import Tile
from mint_stream.kernels.worklist import Launch

SIZES = ["total_rows", "input_units", "steps", "slots", "slices"]


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]  # triton ships no types
def shrink_kernel(
    x: tl.tensor,
    h: tl.tensor,
    items: tl.tensor,
    table: tl.tensor,
    total_rows: tl.tensor,
    input_units: tl.tensor,
    steps: tl.tensor,
    slots: tl.tensor,
    slices: tl.tensor,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    INPUTS: tl.constexpr,
) -> None:
    """h[p, c, t, r] = Σ_{i in plane p} x[t, i] A_cs[r, i] for the rows t of a work item, slice c and plane p = program_id(1).

    x [total_rows, K], K = input_units · UNIT; h [planes, slices, total_rows, RANK] fp32; items int32 [items, 4]; table int64
    [slices, slots, 4]. Plane p holds `steps` times INPUTS inputs. Slices of an item run side by side, so x comes from memory once.
    Rows in no item, or whose adapter has nothing in slice c, are not written; beyond the adapter's rank h means nothing.
    """
    item, piece, plane = tl.program_id(0) // slices, tl.program_id(0) % slices, tl.program_id(1)
    start, count = tl.load(items + item * 4), tl.load(items + item * 4 + 1)
    entry = table + (piece * slots + tl.load(items + item * 4 + 2)) * 4
    rank = tl.load(entry + 2).to(tl.int32)
    if count * rank == 0:
        return
    a = tl.multiple_of(tl.load(entry).to(tl.pointer_type(x.dtype.element_ty)), 16)
    width = input_units * UNIT
    t, r, i = tl.arange(0, ROWS), tl.arange(0, RANK), tl.arange(0, INPUTS)
    rows = (start + t).to(tl.int64)
    sums = tl.zeros((ROWS, RANK), tl.float32)
    for step in range(plane * steps, min(plane * steps + steps, tl.cdiv(width, INPUTS))):
        here = step * INPUTS + i
        xs = tl.load(x + rows[:, None] * width + here[None, :], mask=(t < count)[:, None] & (here < width)[None, :], other=0.0)
        weights = tl.load(a + r[None, :] * width + here[:, None], mask=(r < rank)[None, :] & (here < width)[:, None], other=0.0)
        sums = tl.dot(xs, weights, sums, input_precision="tf32x3")
    out = h + ((plane * slices + piece).to(tl.int64) * total_rows + rows)[:, None] * RANK + r[None, :]
    tl.store(out, sums, mask=(t < count)[:, None])


def shrink(x: Tensor, h: Tensor, items: Tensor, table: Tensor, launch: Launch) -> None:
    """Fill h [planes, slices, rows, tile rank] fp32 from x [rows, in] where `launch` has work; table [slices, slots, 4].

    Reference: reference.shrink for each slice, its sum over planes.
    """
    at, (slices, slots, _) = launch.tile, table.shape
    if h.shape != (launch.planes, slices, x.shape[0], at.rank):
        raise ValueError(f"shrink of {x.shape[0]} rows writes h {[launch.planes, slices, x.shape[0], at.rank]}, not {list(h.shape)}")
    if x.shape[1] % at.unit:
        raise ValueError(f"shrink reads {at.unit} inputs at a time, and x has {x.shape[1]}")
    shrink_kernel[(len(launch.items) * slices, launch.planes)](
        *(x, h, items, table, x.shape[0], x.shape[1] // at.unit, launch.steps, slots, slices),
        **shrink_constants(at),
        num_warps=at.warps,
        num_stages=at.stages,
    )


def shrink_constants(at: Tile) -> dict[str, int]:
    """What is compiled into the variant."""
    return {"UNIT": at.unit, "ROWS": at.rows, "RANK": at.rank, "INPUTS": at.inputs}
