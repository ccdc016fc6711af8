"""What the Triton kernels can read, decided from shapes alone: what they cannot goes through torch, and a worker says so at its start."""

from collections.abc import Collection, Mapping

import torch

from mint_stream.kernels.attention_plan import WIDEST
from mint_stream.kernels.tiles import ALIGNMENT_BYTES, DTYPES


def whole_units(width: int, dtype: torch.dtype) -> bool:
    """Whether rows of so many numbers begin at multiples of 16 bytes, as every load wants it."""
    return dtype in DTYPES and width * dtype.itemsize % ALIGNMENT_BYTES == 0


def head(width: int, dtype: torch.dtype) -> bool:
    """Whether attention's kernels take heads of this width: at most WIDEST numbers (fp32: half)."""
    return whole_units(width, dtype) and width * dtype.itemsize <= 2 * WIDEST


def through_torch(heads: Collection[int], layers: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[str, ...]:
    """A sentence for each thing of a model in `dtype` that the kernels cannot read. `layers`: (in, out, ...) by module path."""
    name = str(dtype).removeprefix("torch.")
    wide = sorted(width for width in heads if not head(width, dtype))
    odd = [path for path, (inputs, outputs, *_) in layers.items() if not (whole_units(inputs, dtype) and whole_units(outputs, dtype))]
    said = []
    if wide:
        said.append(f"attention over heads of {', '.join(map(str, wide))} numbers in {name}")
    if odd:
        inputs, outputs, *_ = layers[odd[0]]
        said.append(f"adapters of {len(odd)} layers in {name}, {odd[0]} ({inputs} to {outputs}) first")
    return tuple(said)
