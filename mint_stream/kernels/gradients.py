"""The gradients of A and of Bt: what an adapter's own rows add up to, each number by one CTA in the order of the rows, without atomics."""

import triton
import triton.language as tl
from torch import Tensor

from mint_stream.kernels.tiles import Tile
from mint_stream.kernels.worklist import Launch

SIZES = ["total_rows", "column_units", "planes"]
STAGES = 1
WARPS = 8


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]  # triton ships no types
def gradient_kernel(
    h: tl.tensor,
    z: tl.tensor,
    items: tl.tensor,
    runs: tl.tensor,
    table: tl.tensor,
    total_rows: tl.tensor,
    column_units: tl.tensor,
    planes: tl.tensor,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLANES: tl.constexpr,
) -> None:
    """G_s[r, j] += scaling_s · Σ_t (Σ_p h[p, t, r]) z[t, j] over all rows t of slot s, for the slot of run program_id(0), COLUMNS of j.

    h [planes, total_rows, RANK] fp32, planes ≤ PLANES; z [total_rows, N], N = column_units · UNIT; items int32 [., 4] sorted by slot;
    runs int32 [., 4]: first item, items, slot; table int64 [slots, 5]: where G is (fp32; 0: nowhere), rank, the bits of the scaling,
    G's row and column strides. Rows in no item are not read.
    """
    run, entry = runs + tl.program_id(0) * 4, table + tl.load(runs + tl.program_id(0) * 4 + 2) * 5
    rank = tl.load(entry + 1).to(tl.int32)
    if rank == 0:
        return
    width = column_units * UNIT
    t, r = tl.arange(0, ROWS), tl.arange(0, RANK)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((RANK, COLUMNS), tl.float32)
    first = tl.load(run)
    for item in range(first, first + tl.load(run + 1)):
        rows = tl.load(items + item * 4).to(tl.int64) + t
        present = t < tl.load(items + item * 4 + 1)
        parts = h + rows[None, :] * RANK + r[:, None]
        narrow = tl.load(parts, mask=present[None, :], other=0.0)
        for plane in tl.static_range(1, PLANES):
            narrow += tl.load(parts + total_rows.to(tl.int64) * RANK * plane, mask=present[None, :] & (plane < planes), other=0.0)
        wide = tl.load(z + rows[:, None] * width + j[None, :], mask=present[:, None] & (j < width)[None, :], other=0.0)
        sums = tl.dot(narrow.to(z.dtype.element_ty), wide, sums, input_precision="tf32x3")
    scaling = tl.load(entry + 2).to(tl.int32).to(tl.float32, bitcast=True)
    out = tl.load(entry).to(tl.pointer_type(tl.float32)) + r[:, None] * tl.load(entry + 3) + j[None, :] * tl.load(entry + 4)
    mask = (r < rank)[:, None] & (j < width)[None, :]
    tl.store(out, tl.load(out, mask=mask, other=0.0) + sums * scaling, mask=mask)


def gradient(h: Tensor, z: Tensor, items: Tensor, runs: Tensor, table: Tensor, launch: Launch) -> None:
    """Add each slot's rows of hᵀ z to its gradient; h [planes, 1, rows, tile rank] as shrink left it, z [rows, N].

    Reference: reference.gradient of h summed over planes.
    """
    at = launch.tile
    if h.shape != (launch.planes, 1, z.shape[0], at.rank):
        raise ValueError(f"gradients over {z.shape[0]} rows read h {[launch.planes, 1, z.shape[0], at.rank]}, not {list(h.shape)}")
    if z.shape[1] % at.unit:
        raise ValueError(f"gradients are made {at.unit} columns at a time, and z has {z.shape[1]}")
    gradient_kernel[(runs.shape[0], -(-z.shape[1] // at.columns))](
        *(h, z, items, runs, table, z.shape[0], z.shape[1] // at.unit, launch.planes),
        **gradient_constants(at),
        num_warps=WARPS,
        num_stages=STAGES,
    )


def gradient_constants(at: Tile) -> dict[str, int]:
    """What is compiled into the variant."""
    return {"UNIT": at.unit, "ROWS": at.rows, "RANK": at.rank, "COLUMNS": at.columns, "PLANES": at.max_planes}
