"""Tables that the host makes and the device reads."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from mint_stream.kernels.segments import LoraWeights, SiteWeights

NOTHING = (0, 0, 0, 0)
"""The line of a slot whose adapter has nothing for a layer."""


def placed(table: Tensor, device: torch.device) -> Tensor:
    """On `device`, by a copy that the host does not wait for.

    Raises RuntimeError while a graph is captured: it would go on reading host memory that is gone by its replay.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a table was made while a graph was captured: passes of graphs bring all their tables with them")
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


def weight_line(lora: LoraWeights, swapped: bool = False) -> tuple[int, int, int, int]:
    """Where A and Bt are (Bt and A when swapped), the rank, the bits of the fp32 scaling."""
    first, second = (lora.Bt, lora.A) if swapped else (lora.A, lora.Bt)
    return first.data_ptr(), second.data_ptr(), lora.rank, bits_of(lora.scaling)


def table_key(device: torch.device, swapped: bool, sites: Sequence[SiteWeights]) -> tuple[object, ...]:
    """Under what the first of `sites` keeps the table of them all."""
    return (device, swapped, *sites[1:])


def bits_of(scaling: float) -> int:
    """The 32 bits of an fp32 number, as an integer."""
    (bits,) = struct.unpack("<i", struct.pack("<f", scaling))
    return int(bits)
