"""Training's LoRA by the Triton kernels: masters as autograd has them become what the kernels read, and gradients what they write.

What the kernels do not know is made up for beside them: a transposed or unaligned master is copied (as small as it is), dropout is put
on the inputs, and gradients that are not float32 are added up in float32 first.
"""

from dataclasses import replace

import torch
from torch import Tensor

from mint_stream.kernels import cuda
from mint_stream.kernels.segments import LoraWeights, Segments, SiteWeights
from mint_stream.kernels.tiles import ALIGNMENT_BYTES, RANKS, ROWS


def takes(x: Tensor, y: Tensor, weights: SiteWeights) -> bool:
    """Whether the kernels can train this layer: x and y contiguous and aligned, adapters of the same dtype and of ranks up to 128."""
    used = [lora for lora in weights.at if lora is not None]
    alike = all(side.dtype == x.dtype and side.device == x.device for lora in used for side in (lora.A, lora.Bt))
    return alike and all(lora.rank <= RANKS[-1] for lora in used) and cuda.takes(x, y, SiteWeights())


def train_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    """As reference.add_lora, with dropout. A segment's bits are its own matter, whoever shares the pass."""
    cuda.added(_dropped(x, segments, weights), [(y, readable(weights))], segments, ROWS[1])


def lora_backward(x: Tensor, grad_y: Tensor, segments: Segments, weights: SiteWeights, grad_x: Tensor | None) -> None:
    """As reference.lora_backward, with dropout."""
    plain = readable(weights)
    through = torch.zeros_like(grad_x) if grad_x is not None and _drops(weights) else grad_x
    cuda.lora_backward(_dropped(x, segments, weights), grad_y, segments, plain, through)
    _narrow(weights, plain)
    if grad_x is not None and through is not None and through is not grad_x:
        grad_x += _scaled(through, segments, weights)


def readable(weights: SiteWeights) -> SiteWeights:
    """The same adapters as the kernels read them: A and Bt in rows, gradients in float32 (fresh zeros where they are not), no dropout."""
    return SiteWeights([None if lora is None else _readable(lora) for lora in weights.at])


def _readable(lora: LoraWeights) -> LoraWeights:
    a, bt = _in_rows(lora.A), _in_rows(lora.Bt)
    grads = [grad if grad is None or grad.dtype == torch.float32 else torch.zeros_like(grad, dtype=torch.float32) for grad in _grads(lora)]
    return replace(lora, A=a, Bt=bt, grad_A=grads[0], grad_Bt=grads[1], dropout=None)


def _in_rows(side: Tensor) -> Tensor:
    rows = side.contiguous()
    dense = rows.stride(0) == rows.shape[1]  # not so in a transposed view of a single row
    return (
        rows
        if dense and not rows.data_ptr() % ALIGNMENT_BYTES
        else torch.empty(side.shape, dtype=side.dtype, device=side.device).copy_(side)
    )


def _grads(lora: LoraWeights) -> tuple[Tensor | None, Tensor | None]:
    return lora.grad_A, lora.grad_Bt


def _narrow(weights: SiteWeights, plain: SiteWeights) -> None:
    """Add what was made in float32 to gradients of other dtypes."""
    for theirs, ours in zip(weights.at, plain.at, strict=True):
        for wanted, made in zip(_grads(theirs), _grads(ours), strict=True) if theirs is not None and ours is not None else ():
            if wanted is not None and made is not None and wanted is not made:
                wanted.add_(made)


def _drops(weights: SiteWeights) -> bool:
    return any(lora is not None and lora.dropout is not None for lora in weights.at)


def _dropped(x: Tensor, segments: Segments, weights: SiteWeights) -> Tensor:
    return _scaled(x.clone(), segments, weights) if _drops(weights) else x


def _scaled(rows: Tensor, segments: Segments, weights: SiteWeights) -> Tensor:
    """rows [rows, in], in place, times what each segment's dropout keeps."""
    for segment, lora in weights.pairs(segments):
        if lora.dropout is not None:
            part = rows[segment.start : segment.end]
            part.mul_(lora.dropout.keep(part))
    return rows
