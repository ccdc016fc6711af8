"""LoRA in autograd: the forward adds to the base's output, the backward adds to the adapters' own gradient slices."""

from typing import Any

import torch
from torch import Tensor

from mint_stream.kernels import cpu
from mint_stream.kernels.paths import by_triton, triton_module
from mint_stream.kernels.segments import Segments, SiteWeights


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> Tensor:
        ctx.save_for_backward(x)
        ctx.mark_dirty(y)
        ctx.segments, ctx.weights = segments, weights
        _path(x, y, weights).train_lora(x, y, segments, weights)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor, None, None]:
        (x,), (grad_y,) = ctx.saved_tensors, grads
        rows = grad_y.contiguous()
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        _path(x, rows, ctx.weights).lora_backward(x, rows, ctx.segments, ctx.weights, grad_x)
        return None, grad_x, grad_y, None, None


def _path(x: Tensor, y: Tensor, weights: SiteWeights) -> Any:
    """The module that trains this layer: layers that the Triton kernels cannot read go through torch."""
    training = triton_module("training_cuda") if by_triton(x) else None
    return training if training is not None and training.takes(x, y, weights) else cpu


def lora_with_gradients(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights, anchor: Tensor) -> Tensor:
    """y with the adapters' parts added (y's storage is reused). x [rows, in], y [rows, out].

    Gradients of A and Bt never become tensors of their own: they are added to LoraWeights.grad_A and grad_Bt.
    `anchor` is any leaf that requires gradients: it makes autograd visit layers whose inputs need none.
    """
    result: Tensor = _Lora.apply(anchor, x, y, segments, weights)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return result
