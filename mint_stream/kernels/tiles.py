"""How the GPU kernels cut their work: a small table, so that every variant a launch can ask for is known and compiled by a test."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

ROWS = (16, 64)
"""Rows of a work item: decode and short segments, or prefill. 16 is the smallest tile that the matrix units take."""
RANKS = (16, 32, 128)
"""Ranks are stored exactly; in registers they are filled up with zeros to one of these. Bytes are what counts, so few will do."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ALIGNMENT_BYTES = 16


@dataclass(frozen=True)
class Tile:
    """One variant of shrink, of expand and of gradient."""

    rows: int
    rank: int
    dtype: torch.dtype
    inputs: int
    """Inputs that shrink multiplies at a time."""
    outputs: int
    """Outputs of one CTA of expand."""
    columns: int
    """Columns of a gradient that one CTA adds up."""
    max_planes: int
    """Partial sums of shrink that expand's prologue can add."""
    warps: int
    stages: int
    """Loads that shrink has in flight."""

    @property
    def unit(self) -> int:
        """Elements in 16 bytes: inputs and outputs are multiples of it, so that every load is as wide as the hardware's."""
        return ALIGNMENT_BYTES // self.dtype.itemsize


def tile(rows: int, rank: int, dtype: torch.dtype) -> Tile:
    """The variant for work items of `rows` rows (one of ROWS) and adapters of up to `rank`.

    fp32 numbers take twice the bytes and, as three products of tf32 parts, thrice the registers: their tiles are smaller.
    """
    width = rank_bucket(rank)
    few, wide, large = rows == ROWS[0], dtype.itemsize == 4, rows * width > 2048
    inputs = 64 if width >= 64 or wide else 128
    outputs = 256 if few and width <= 32 else 64 if large else 128
    if wide:
        inputs = 32 if rows * width >= 2048 else inputs
        outputs //= 4 if large else 2
    return Tile(rows, width, dtype, inputs, outputs, 32 if large else 64, 16 if few else 4, 8 if wide and large else 4, 2 if wide else 3)


def every_tile() -> Iterator[Tile]:
    """All variants that any launch can choose."""
    return (tile(rows, rank, dtype) for rows in ROWS for rank in RANKS for dtype in DTYPES)


def rank_bucket(rank: int) -> int:
    """The smallest of RANKS that holds `rank`."""
    if not 1 <= rank <= RANKS[-1]:
        raise ValueError(f"the GPU kernels take ranks from 1 to {RANKS[-1]}, not {rank}")
    return next(width for width in RANKS if width >= rank)
