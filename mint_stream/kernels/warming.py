"""Compiling before anybody waits for it."""

import torch

from mint_stream.kernels import LoraWeights, Segments, SiteWeights, add_lora, triton_on
from mint_stream.kernels.tiles import RANKS, ROWS

WIDTH = 64
"""Of the layer that it is tried on. No variant depends on it."""


def warm(device: torch.device, dtype: torch.dtype) -> int:
    """Compute with every variant of the LoRA kernels that passes of `dtype` choose. How many; 0 where torch computes."""
    cases = [(rows, rank) for rows in (1, ROWS[0] + 1) for rank in RANKS] if triton_on(device) else []
    for rows, rank in cases:
        x, y = (torch.zeros(rows, WIDTH, dtype=dtype, device=device) for _ in range(2))
        a, bt = (torch.zeros(rank, WIDTH, dtype=dtype, device=device) for _ in range(2))
        add_lora(x, y, Segments.of_slots([0] * rows), SiteWeights([LoraWeights(a, bt)]))
    return len(cases)
