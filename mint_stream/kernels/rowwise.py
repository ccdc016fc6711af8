"""What a decoder layer does to each row besides its products, behind one dispatch: norms, gates and rotary positions."""

import torch
from torch import Tensor
from torch.nn import functional

from mint_stream.kernels import native


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x [..., width] → x / sqrt(mean x² + epsilon) · weight."""
    if x.dim() == 2 and native.takes(x, weight):
        return native.rms_norm(x, weight, epsilon)
    return functional.rms_norm(x, weight.shape, weight, epsilon)


def gated(x: Tensor) -> Tensor:
    """x [rows, 2 · width] → silu(its first half) · its second half."""
    if native.takes(x):
        return native.gated(x)
    gate, up = x.chunk(2, dim=1)
    return functional.silu(gate).mul_(up)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [rows, heads, width] turned by its positions: halves (a, b) become (a cos - b sin, b cos + a sin). cos and sin [rows, width].

    x is spent: what it holds afterwards is not said.
    """
    if x.stride(1) == x.shape[2] and cos.is_contiguous() and sin.is_contiguous() and native.takes(x, cos, sin):
        native.rotate(x, cos, sin)
        return x
    half = x.shape[-1] // 2
    cosines, sines = cos[:, None, :half], sin[:, None, :half]
    a, b = x[..., :half], x[..., half:]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(a, cosines, out=out[..., :half]).addcmul_(b, sines, value=-1)
    torch.mul(b, cosines, out=out[..., half:]).addcmul_(a, sines)
    return out
