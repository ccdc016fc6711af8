"""Attention behind the dispatch: over pages in serving, over whole packed sequences, with gradients, in training."""

from typing import Any

import torch
from torch import Tensor

from mint_stream.kernels import reference, torch_attention
from mint_stream.kernels.attention_plan import PagedSpans
from mint_stream.kernels.attention_rule import Rule
from mint_stream.kernels.bound_attention import BoundSpans
from mint_stream.kernels.paths import by_triton, triton_module


def takes_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a kernel attends for q, k and v [rows, heads, width] here; elsewhere torch's own attention is the faster one."""
    return by_triton(q) and bool(triton_module("paged_attention").takes(q, k, v))


def paged_attention(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, spans: PagedSpans, rule: Rule) -> Tensor:
    """As reference.paged_attention, but rows in no span hold anything. No gradients."""
    taken = takes_attention(q, keys, values)
    if not taken and isinstance(spans, BoundSpans):
        raise ValueError(f"a graph attends by the kernels, and these cannot read heads of {q.shape[2]} and {values.shape[3]} numbers")
    if not taken:
        return torch_attention.paged_attention(q, keys, values, table, spans, rule)
    out: Tensor = triton_module("paged_attention").paged_attention(q, keys, values, table, spans, *rule.arguments())
    return out


def packed_attention(q: Tensor, k: Tensor, v: Tensor, spans: PagedSpans, rule: Rule) -> Tensor:
    """As reference.packed_attention, with gradients of q, k and v whose bits are each sequence's own matter; sinks are frozen."""
    out: Tensor = _Packed.apply(q.contiguous(), k.contiguous(), v.contiguous(), spans, rule)  # type: ignore[no-untyped-call]
    return out


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: PagedSpans, rule: Rule) -> Tensor:
        path: Any = _training_path(q, k, v)
        out: Tensor = path.packed_attention(q, k, v, spans, *rule.arguments())
        ctx.save_for_backward(q, k, v, out)
        ctx.spans, ctx.rule = spans, rule
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        found = _training_path(q, k, v).attention_backward(q, k, v, out, grads[0].contiguous(), ctx.spans, *ctx.rule.arguments())
        return (*found, None, None)


def _training_path(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return triton_module("attention_backward") if takes_attention(q, k, v) else reference
