"""Attention in training: whole sequences packed into rows, and its gradients by sums in a fixed order, without atomics.

Logits are computed again, so the forward keeps nothing but its answer. Sinks belong to the frozen base and get no gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mint_stream.kernels.attention_plan import EVERYTHING, WIDEST, PagedSpans, power
from mint_stream.kernels.paged_attention import paged_attention
from mint_stream.kernels.placing import placed
from mint_stream.kernels.tiles import ALIGNMENT_BYTES, DTYPES

SIZES = ["scaling", "softcap", "window"]
TOKENS = 32
STAGES = 1


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def capped_logits(queries: tl.tensor, k: tl.tensor, scaling: tl.tensor, softcap: tl.tensor, SOFTCAP: tl.constexpr) -> tl.tensor:
    """s[t, n] = cap(scaling · Σ_k q[t, k] K[k, n]), cap(s) = softcap · tanh(s / softcap) when SOFTCAP."""
    logits = tl.dot(queries, k, input_precision="tf32x3") * scaling
    if SOFTCAP:
        logits = softcap * (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0)
    return logits


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]  # triton ships no types
def query_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    grad_out: tl.tensor,
    grad_q: tl.tensor,
    marks: tl.tensor,
    sinks: tl.tensor,
    items: tl.tensor,
    scaling: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    GROUP: tl.constexpr,
    HEIGHT: tl.constexpr,
    TOKENS: tl.constexpr,
    KEY: tl.constexpr,
    KEY_REGISTERS: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_REGISTERS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
) -> None:
    """grad_q[t, a, k] = scaling · Σ_n d[t, a, n] K[n, g, k], d = w (Σ_v grad_out[t, a, v] V[n, g, v] - D[t, a]) cap'(s).

    D = Σ_v grad_out[t, a, v] out[t, a, v]; w = e^(s - L) are the softmax's weights. For HEIGHT // GROUP rows of an item's sequence and
    the heads a of key head g = program_id(1).
    Leaves marks [rows, heads, 2] fp32 = (L, D). items int32 [items, 4]: the sequence's first row, its rows, the first of this item.
    """
    item, g, heads = items + tl.program_id(0) * 4, tl.program_id(1), tl.num_programs(1) * GROUP
    start, length, first = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    if length == 0:
        return
    at, d, o = tl.arange(0, HEIGHT), tl.arange(0, KEY_REGISTERS), tl.arange(0, VALUE_REGISTERS)
    t = first + at // GROUP
    here = (start + t).to(tl.int64) * heads + g * GROUP + at % GROUP
    present = (at // GROUP < HEIGHT // GROUP) & (t < length)
    queries = tl.load(q + here[:, None] * KEY + d[None, :], mask=present[:, None] & (d < KEY)[None, :], other=0.0)
    wide = present[:, None] & (o < VALUE)[None, :]
    grads = tl.load(grad_out + here[:, None] * VALUE + o[None, :], mask=wide, other=0.0)
    answers = tl.load(out + here[:, None] * VALUE + o[None, :], mask=wide, other=0.0)
    product = tl.sum(grads.to(tl.float32) * answers.to(tl.float32), 1)
    begin, end = tl.maximum(0, first - window + 1) // TOKENS * TOKENS, tl.minimum(length, first + HEIGHT // GROUP)
    largest = tl.full((HEIGHT,), float("-inf"), tl.float32)
    if SINKS:
        largest = tl.load(sinks + g * GROUP + at % GROUP).to(tl.float32)
    total = tl.where(largest > float("-inf"), 1.0, 0.0)
    for low in range(begin, end, TOKENS):
        n = low + tl.arange(0, TOKENS)
        column = (start + n).to(tl.int64) * tl.num_programs(1) + g
        keys = tl.load(k + column[None, :] * KEY + d[:, None], mask=(n < end)[None, :] & (d < KEY)[:, None], other=0.0)
        visible = (n[None, :] <= t[:, None]) & (n[None, :] > t[:, None] - window) & (n < end)[None, :]
        logits = tl.where(visible, capped_logits(queries, keys, scaling, softcap, SOFTCAP), float("-inf"))
        higher = tl.maximum(largest, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
        largest = higher
    whole = largest + tl.log(tl.where(total == 0.0, 1.0, total))
    sums = tl.zeros((HEIGHT, KEY_REGISTERS), tl.float32)
    for low in range(begin, end, TOKENS):
        n = low + tl.arange(0, TOKENS)
        column = (start + n).to(tl.int64) * tl.num_programs(1) + g
        keys = tl.load(k + column[None, :] * KEY + d[:, None], mask=(n < end)[None, :] & (d < KEY)[:, None], other=0.0)
        values = tl.load(v + column[None, :] * VALUE + o[:, None], mask=(n < end)[None, :] & (o < VALUE)[:, None], other=0.0)
        visible = (n[None, :] <= t[:, None]) & (n[None, :] > t[:, None] - window) & (n < end)[None, :] & present[:, None]
        logits = capped_logits(queries, keys, scaling, softcap, SOFTCAP)
        weights = tl.where(visible, tl.exp(logits - whole[:, None]), 0.0)
        slopes = weights * (tl.dot(grads, values, input_precision="tf32x3") - product[:, None])
        if SOFTCAP:
            slopes *= 1.0 - (logits / softcap) * (logits / softcap)
        sums = tl.dot(slopes.to(keys.dtype), tl.trans(keys), sums, input_precision="tf32x3")
    narrow = present[:, None] & (d < KEY)[None, :]
    tl.store(grad_q + here[:, None] * KEY + d[None, :], (sums * scaling).to(grad_q.dtype.element_ty), mask=narrow)
    tl.store(marks + here * 2, whole, mask=present)
    tl.store(marks + here * 2 + 1, product, mask=present)


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]  # triton ships no types
def key_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    grad_out: tl.tensor,
    grad_k: tl.tensor,
    grad_v: tl.tensor,
    marks: tl.tensor,
    items: tl.tensor,
    scaling: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    GROUP: tl.constexpr,
    HEIGHT: tl.constexpr,
    TOKENS: tl.constexpr,
    KEY: tl.constexpr,
    KEY_REGISTERS: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_REGISTERS: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """grad_k[n, g, k] = scaling · Σ_a Σ_t d[t, a, n] q[t, a, k] and grad_v[n, g, v] = Σ_a Σ_t w[t, a, n] grad_out[t, a, v], t ascending.

    For TOKENS keys of an item's sequence and key head g = program_id(1), over its heads a and the rows t that see a key; d, w and marks
    as query_gradient_kernel left them, items as its own.
    """
    item, g, heads = items + tl.program_id(0) * 4, tl.program_id(1), tl.num_programs(1) * GROUP
    start, length, first = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    if length == 0:
        return
    at, d, o = tl.arange(0, HEIGHT), tl.arange(0, KEY_REGISTERS), tl.arange(0, VALUE_REGISTERS)
    n = first + tl.arange(0, TOKENS)
    column = (start + n).to(tl.int64) * tl.num_programs(1) + g
    keys = tl.load(k + column[None, :] * KEY + d[:, None], mask=(n < length)[None, :] & (d < KEY)[:, None], other=0.0)
    values = tl.load(v + column[None, :] * VALUE + o[:, None], mask=(n < length)[None, :] & (o < VALUE)[:, None], other=0.0)
    key_sums = tl.zeros((TOKENS, KEY_REGISTERS), tl.float32)
    value_sums = tl.zeros((TOKENS, VALUE_REGISTERS), tl.float32)
    for low in range(first, tl.minimum(length, first + TOKENS - 1 + window), HEIGHT // GROUP):
        t = low + at // GROUP
        here = (start + t).to(tl.int64) * heads + g * GROUP + at % GROUP
        present = (at // GROUP < HEIGHT // GROUP) & (t < length)
        queries = tl.load(q + here[:, None] * KEY + d[None, :], mask=present[:, None] & (d < KEY)[None, :], other=0.0)
        grads = tl.load(grad_out + here[:, None] * VALUE + o[None, :], mask=present[:, None] & (o < VALUE)[None, :], other=0.0)
        whole, product = tl.load(marks + here * 2, mask=present, other=0.0), tl.load(marks + here * 2 + 1, mask=present, other=0.0)
        logits = capped_logits(queries, keys, scaling, softcap, SOFTCAP)
        visible = (n[None, :] <= t[:, None]) & (n[None, :] > t[:, None] - window) & (n < length)[None, :] & present[:, None]
        weights = tl.where(visible, tl.exp(logits - whole[:, None]), 0.0)
        slopes = weights * (tl.dot(grads, values, input_precision="tf32x3") - product[:, None])
        if SOFTCAP:
            slopes *= 1.0 - (logits / softcap) * (logits / softcap)
        value_sums = tl.dot(tl.trans(weights.to(grads.dtype)), grads, value_sums, input_precision="tf32x3")
        key_sums = tl.dot(tl.trans(slopes.to(queries.dtype)), queries, key_sums, input_precision="tf32x3")
    narrow, wide = (n < length)[:, None] & (d < KEY)[None, :], (n < length)[:, None] & (o < VALUE)[None, :]
    tl.store(grad_k + column[:, None] * KEY + d[None, :], (key_sums * scaling).to(grad_k.dtype.element_ty), mask=narrow)
    tl.store(grad_v + column[:, None] * VALUE + o[None, :], value_sums.to(grad_v.dtype.element_ty), mask=wide)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: PagedSpans,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As reference.packed_attention: paged attention whose pages are single rows. q [rows, heads, K] → [rows, heads, V]."""
    return paged_attention(q, k[:, None], v[:, None], spans.own_rows(q.device), spans, scaling, window, softcap, sinks)


def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    grad_out: Tensor,
    spans: PagedSpans,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As reference.attention_backward: gradients of q, k and v, zero in rows of no span. A sequence's bits are its own matter."""
    _check(q, k, v, out, grad_out)
    group, height = q.shape[1] // k.shape[1], backward_height(q.shape[1] // k.shape[1], q.dtype)
    grads = [torch.zeros_like(side) for side in (q, k, v)]
    marks = q.new_empty(*q.shape[:2], 2, dtype=torch.float32)
    numbers = (scaling, softcap or 0.0, EVERYTHING if window is None else window)
    warps = backward_warps(max(k.shape[2], v.shape[2]))
    constants = backward_constants(group, k.shape[2], v.shape[2], softcap is not None, q.dtype)
    rows, keys = (_items(spans, step, q.device) for step in (height // group, TOKENS))
    with torch.cuda.device(q.get_device()):  # -1, no change, where triton interprets on the CPU
        if len(rows):
            tensors = (q, k, v, out, grad_out, grads[0], marks, marks if sinks is None else sinks, rows)
            launch = query_gradient_kernel[(len(rows), k.shape[1])]
            launch(*tensors, *numbers, **constants, SINKS=sinks is not None, num_warps=warps, num_stages=STAGES)
            launch = key_gradient_kernel[(len(keys), k.shape[1])]
            launch(q, k, v, grad_out, *grads[1:], marks, keys, *numbers, **constants, num_warps=warps, num_stages=STAGES)
    return grads[0], grads[1], grads[2]


def _check(q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad_out: Tensor) -> None:
    sides = (q, k, v, out, grad_out)
    if not all(side.is_contiguous() and side.dtype == q.dtype and side.data_ptr() % ALIGNMENT_BYTES == 0 for side in sides):
        raise ValueError("attention's gradients need contiguous, 16-byte aligned tensors of one dtype")
    if q.dtype not in DTYPES or max(q.shape[2], v.shape[2]) * q.element_size() > WIDEST * 2:
        raise ValueError(f"attention's gradients take heads of at most {WIDEST} numbers (fp32: half)")
    if q.shape[2] != k.shape[2] or k.shape[:2] != v.shape[:2] or out.shape != grad_out.shape or out.shape != (*q.shape[:2], v.shape[2]):
        raise ValueError(f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} and out {list(out.shape)} do not fit each other")


def backward_height(group: int, dtype: torch.dtype) -> int:
    """Rows times query heads of a group in one tile."""
    return max(16 if dtype.itemsize == 4 else 32, power(group))


def backward_warps(width: int) -> int:
    """Warps of a tile whose rows have up to `width` numbers."""
    return 8 if power(width) > 64 else 4


def backward_constants(group: int, key: int, value: int, softcap: bool, dtype: torch.dtype) -> dict[str, int]:
    """What a model compiles into both kernels."""
    widths = {"KEY": key, "KEY_REGISTERS": max(16, power(key)), "VALUE": value, "VALUE_REGISTERS": max(16, power(value))}
    return {"GROUP": group, "HEIGHT": backward_height(group, dtype), "TOKENS": TOKENS, **widths, "SOFTCAP": softcap}


def _items(spans: PagedSpans, step: int, device: torch.device) -> Tensor:
    """int32 [items, 4]: every span cut into pieces of up to `step` rows: its first row, its rows, the piece's first, nothing."""
    if ("pieces", step, device) not in spans.kept:
        lines = [(span.start, span.end - span.start, first, 0) for span in spans.items for first in range(0, span.end - span.start, step)]
        spans.kept["pieces", step, device] = placed(torch.tensor(lines, dtype=torch.int32).view(-1, 4), device)
    table: Tensor = spans.kept["pieces", step, device]
    return table
