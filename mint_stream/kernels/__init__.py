"""LoRA kernels behind one dispatch: callers never choose. `reference` defines them, `cpu` is the tuned torch path, `cuda` the Triton one.

`paths` says which of them computes for a tensor. Layers that the Triton kernels cannot read (`cuda.takes`) go through torch anywhere.
Attention has a dispatch of its own, `attention`, and so have norms, gates and rotary positions, `rowwise`. On CPUs `native` computes what
torch would take many operators for, where a C++ compiler is installed.
"""

from collections.abc import Sequence
from itertools import compress

from torch import Tensor

from mint_stream.kernels import cpu, experts
from mint_stream.kernels.backward import lora_with_gradients
from mint_stream.kernels.experts import ExpertPairs
from mint_stream.kernels.paths import by_triton, triton_module, triton_on
from mint_stream.kernels.segments import Bound, Dropout, LoraWeights, Segment, Segments, SiteWeights, SliceWeights, Stack

__all__ = [
    "Bound",
    "Dropout",
    "ExpertPairs",
    "LoraWeights",
    "Segment",
    "Segments",
    "SiteWeights",
    "SliceWeights",
    "Stack",
    "add_expert_lora",
    "add_lora",
    "add_lora_slices",
    "lora_with_gradients",
    "triton_on",
]


def add_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    """y += each row's own adapter applied to x, in place; x [rows, in], y [rows, out], rows as in `segments`. No gradients."""
    add_lora_slices(x, (y,), segments, SliceWeights((weights,)))


def add_lora_slices(x: Tensor, ys: Sequence[Tensor], segments: Segments, weights: SliceWeights) -> None:
    """add_lora for several layers that read the same x: ys[i] [rows, out of layer i], in place. No gradients."""
    if any(tensor.shape[0] != segments.rows for tensor in (x, *ys)):
        raise ValueError(f"the pass has {segments.rows} rows, x has {x.shape[0]} and y has {[y.shape[0] for y in ys]}")
    if by_triton(x):
        _add_on_device(x, [(y, site) for y, site in zip(ys, weights.sites, strict=True) if site is not None], segments)
    else:
        cpu.add_lora_slices(x, ys, segments, weights)


def _add_on_device(x: Tensor, slices: Sequence[tuple[Tensor, SiteWeights]], segments: Segments) -> None:
    """One launch of each kernel for all slices that they can read, torch for the rest."""
    cuda = triton_module("cuda")
    readable = [cuda.takes(x, y, site) for y, site in slices]
    if any(readable):
        cuda.add_lora_slices(x, list(compress(slices, readable)), segments)
    for (y, site), taken in zip(slices, readable, strict=True):
        if not taken and segments.bound is not None:
            raise ValueError(f"a graph's layers are read by the kernels, and these cannot read {list(x.shape)} to {list(y.shape)}")
        if not taken:
            cpu.add_lora(x, y, segments, site)


def add_expert_lora(x: Tensor, y: Tensor, pairs: ExpertPairs, weights: SiteWeights) -> None:
    """y += each pair's own adapter at its own expert applied to x, in place; x [pairs, in], y [pairs, out]. No gradients."""
    if x.shape[0] != len(pairs.order) or y.shape[0] != len(pairs.order):
        raise ValueError(f"the layer has {len(pairs.order)} pairs, x has {x.shape[0]} and y has {y.shape[0]}")
    if by_triton(x) and triton_module("cuda").takes(x, y, weights, pairs.experts):
        device = triton_module("expert_cuda")
        device.add_expert_lora(x, y, device.device_pairs(pairs, len(weights.at)), weights, pairs.segments)
    else:
        experts.add_expert_lora(x, y, pairs, weights)
