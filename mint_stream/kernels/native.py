"""CPU kernels for what torch takes many operators and passes over memory for: the arguments of native.cpp, made of tensors.

Each has a `takes`-question to ask first; where the answer is no, torch's operators compute the same.
"""

from collections.abc import Sequence
from ctypes import c_int64

import torch
from torch import Tensor
from torch.profiler import record_function

from mint_stream.kernels.native_library import KINDS, Kernel, kernels
from mint_stream.kernels.segments import SharedStack

MOST_WIDTH = 512
"""Numbers of a head's query or value, as in native.cpp."""


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels are here and read these: on the CPU, of one kind, each row in one piece, no gradients asked for."""
    kind = tensors[0].dtype
    return (
        kind in KINDS
        and all(one.dtype == kind and one.device.type == "cpu" and one.stride(-1) == 1 for one in tensors)
        and not torch.is_grad_enabled()
        and kernels() is not None
    )


def takes_attention(q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> bool:
    """Whether `attend` is here and reads these."""
    return max(q.shape[-1], values.shape[-1]) <= MOST_WIDTH and out.is_contiguous() and takes(q, keys, values, out)


def takes_lora(x: Tensor, ys: Sequence[Tensor], stack: SharedStack) -> bool:
    """Whether `add_lora` is here and reads these, the adapters' numbers of the kind of x."""
    return stack.addresses is not None and takes(x, stack.A, *ys)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x [rows, width] → x / sqrt(mean x² + epsilon) · weight of each row."""
    out = torch.empty(x.shape, dtype=x.dtype)
    _kernel("rms_norm", x)(x.data_ptr(), x.stride(0), weight.data_ptr(), out.data_ptr(), *x.shape, epsilon)
    return out


def gated(x: Tensor) -> Tensor:
    """x [rows, 2 · width] → silu(its first half) · its second half."""
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((rows, width), dtype=x.dtype)
    _kernel("gated", x)(x.data_ptr(), x.stride(0), out.data_ptr(), rows, width)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """x [rows, heads, width], its heads side by side, in place: halves (a, b) become (a cos - b sin, b cos + a sin); cos [rows, width]."""
    _kernel("rotate", x)(x.data_ptr(), x.stride(0), cos.data_ptr(), sin.data_ptr(), *x.shape)


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    sequences: Tensor,
    out: Tensor,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> None:
    """out[row] = softmax(softcap(q[row] kᵀ · scaling), sinks) v for each (row, slot, length) of sequences, int64 [n, 3].

    q [rows, heads, width]; keys and values [slots, kv_heads, tokens, ...]; out [rows, heads, value width].
    """
    heads, kv_heads = q.shape[1], keys.shape[1]
    logits = None if sinks is None else sinks.float().contiguous()
    numbers = (q.data_ptr(), *q.stride()[:2], keys.data_ptr(), values.data_ptr(), *keys.stride()[:3], *values.stride()[:3])
    sizes = (kv_heads, heads // kv_heads, q.shape[2], values.shape[3], window or 0)
    given = _numbers(numbers + sizes)
    at = None if logits is None else logits.data_ptr()
    _kernel("attend", q)(given, scaling, softcap or 0.0, at, sequences.data_ptr(), len(sequences), out.data_ptr())


def add_lora(x: Tensor, ys: Sequence[Tensor], stack: SharedStack, segments: Tensor) -> None:
    """ys[output][row] += (x[row] A[slot]ᵀ) Bt[slot] for rows start ≤ row < end of each (start, end, slot of the stack), int64 [n, 3]."""
    ranks, width = stack.A.shape[1:]
    h = torch.empty((x.shape[0], ranks))
    assert stack.addresses is not None, "ask `takes_lora` first"
    outputs = [(*where, ys[part.output].data_ptr(), ys[part.output].stride(0)) for part, where in stack.addresses]
    slices = _numbers([number for output in outputs for number in output])
    _kernel("add_lora", x)(
        x.data_ptr(), x.stride(0), stack.A.data_ptr(), stack.A.stride(0), width, ranks,
        segments.data_ptr(), len(segments), slices, len(outputs), h.data_ptr(),
    )  # fmt: skip


def _numbers(given: Sequence[int]) -> object:
    return (c_int64 * len(given))(*given)


def _kernel(name: str, x: Tensor) -> Kernel:
    known = kernels()
    assert known is not None, "ask `takes` first"
    kernel = known[name, x.dtype]
    profiled = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]  # torch exports it without saying so
    return _seen(name, kernel) if profiled else kernel


def _seen(name: str, kernel: Kernel) -> Kernel:
    """The kernel as torch's profiler lists it, which sees its own operators only."""

    def run(*given: object) -> None:
        with record_function(f"mint::{name}"):
            kernel(*given)

    return run
