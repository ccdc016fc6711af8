"""Memory that the system commits only when it is written to."""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


def zeros_when_touched(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """CPU zeros whose pages cost memory only once written: slots are as long as the context, most sequences are short."""
    size = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=dtype).view(*shape)
