"""LoRA kernels behind one dispatch: callers never choose. `reference` defines them, `cpu` is the tuned torch path, `cuda` the Triton one.

`cuda` imports triton, so it is loaded here, once, and only where triton is installed and torch sees a CUDA device: a machine without
either pays nothing and misses nothing. Other devices, and layers that the Triton kernels cannot read (`cuda.takes`), go through torch.
"""

import importlib
import importlib.util

import torch
from torch import Tensor

from mint_stream.kernels import cpu, experts
from mint_stream.kernels.backward import lora_with_gradients
from mint_stream.kernels.experts import ExpertPairs
from mint_stream.kernels.segments import Dropout, LoraWeights, Segment, Segments, SiteWeights

__all__ = [
    "Dropout",
    "ExpertPairs",
    "LoraWeights",
    "Segment",
    "Segments",
    "SiteWeights",
    "add_expert_lora",
    "add_lora",
    "lora_with_gradients",
]

_cuda = importlib.import_module("mint_stream.kernels.cuda") if torch.cuda.is_available() and importlib.util.find_spec("triton") else None


def add_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    """y += each row's own adapter applied to x, in place; x [rows, in], y [rows, out], rows as in `segments`. No gradients."""
    if x.shape[0] != segments.rows or y.shape[0] != segments.rows:
        raise ValueError(f"the pass has {segments.rows} rows, x has {x.shape[0]} and y has {y.shape[0]}")
    if x.is_cuda and _cuda is not None and _cuda.takes(x, y, weights):
        _cuda.add_lora(x, y, segments, weights)
    else:
        cpu.add_lora(x, y, segments, weights)


def add_expert_lora(x: Tensor, y: Tensor, pairs: ExpertPairs, weights: SiteWeights) -> None:
    """y += each pair's own adapter at its own expert applied to x, in place; x [pairs, in], y [pairs, out]. No gradients."""
    if x.shape[0] != len(pairs.order) or y.shape[0] != len(pairs.order):
        raise ValueError(f"the layer has {len(pairs.order)} pairs, x has {x.shape[0]} and y has {y.shape[0]}")
    experts.add_expert_lora(x, y, pairs, weights)
