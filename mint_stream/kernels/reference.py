"""The definition of every kernel, obviously right and slow. Others are tested against these, name by name."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mint_stream.kernels.attention_plan import PagedSpans
from mint_stream.kernels.experts import ExpertPairs
from mint_stream.kernels.segments import Segments, SiteWeights


def add_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    """y[t, o] += scaling_s · Σ_r Σ_i x[t, i] A_s[r, i] Bt_s[r, o] for every row t of every segment s, in place.

    x [rows, in], y [rows, out]. Rows in no segment, or whose adapter has no weights here, keep their bits.
    """
    expand(shrink(x, segments, weights), y, segments, weights)


def add_lora_slices(x: Tensor, slices: Sequence[tuple[Tensor, SiteWeights]], segments: Segments) -> None:
    """y_c[t, o] += scaling_cs · Σ_r Σ_i x[t, i] A_cs[r, i] Bt_cs[r, o] for all slices c = (y_c, weights), layers that share their input."""
    for y, weights in slices:
        add_lora(x, y, segments, weights)


def shrink(x: Tensor, segments: Segments, weights: SiteWeights) -> Tensor:
    """h[t, r] = Σ_i x[t, i] A_s[r, i] → h [rows, largest rank] fp64, zero beyond an adapter's rank and in rows without one."""
    h = x.new_zeros(x.shape[0], weights.max_rank, dtype=torch.float64)
    for segment, lora in weights.pairs(segments):
        for row in range(segment.start, segment.end):
            h[row, : lora.rank] = lora.A.double() @ x[row].double()
    return h


def expand(h: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    """y[t, o] += scaling_s · Σ_r h[t, r] Bt_s[r, o] for every row t of every segment s, in place; h [rows, largest rank], y [rows, out]."""
    for segment, lora in weights.pairs(segments):
        for row in range(segment.start, segment.end):
            y[row] += (lora.scaling * (lora.Bt.double().t() @ h[row, : lora.rank].double())).to(y.dtype)


def gradient(h: Tensor, z: Tensor, segments: Segments, weights: SiteWeights, grads: Sequence[Tensor | None]) -> None:
    """grads_s[r, j] += scaling_s · Σ_t h[t, r] z[t, j] over all rows t of every slot s that has a gradient, in place.

    h [rows, largest rank], z [rows, N], grads_s [rank of s, N] of any strides.
    """
    for segment, lora in weights.pairs(segments):
        for row in range(segment.start, segment.end):
            if (grad := grads[segment.slot]) is not None:
                grad.add_(lora.scaling * h[row, : lora.rank].double().outer(z[row].double()))


def add_expert_lora(x: Tensor, y: Tensor, pairs: ExpertPairs, weights: SiteWeights) -> None:
    """y[p, o] += scaling_s · Σ_r Σ_i x[p, i] A_s[e, r, i] Bt_s[e, r, o] for every pair p of a row of adapter s with expert e, in place.

    x [pairs, in], y [pairs, out]; an adapter's A is [experts · r, in] and its Bt [experts · r, out], an expert after the other.
    Pairs of rows without an adapter, or whose adapter has no weights here, keep their bits.
    """
    for group, lora in pairs.adapted(weights):
        for pair in range(group.start, group.end):
            a, bt = (side.double().view(pairs.experts, -1, side.shape[1])[group.expert] for side in (lora.A, lora.Bt))
            y[pair] += (lora.scaling * (bt.t() @ (a @ x[pair].double()))).to(y.dtype)


def lora_backward(x: Tensor, grad_y: Tensor, segments: Segments, weights: SiteWeights, grad_x: Tensor | None) -> None:
    """The gradients of add_lora, added in place, for grad_y [rows, out]:

    grad_A_s[r, i] += scaling_s · Σ_t (Σ_o grad_y[t, o] Bt_s[r, o]) x[t, i]
    grad_Bt_s[r, o] += scaling_s · Σ_t (Σ_i x[t, i] A_s[r, i]) grad_y[t, o]
    grad_x[t, i]   += scaling_s · Σ_r (Σ_o grad_y[t, o] Bt_s[r, o]) A_s[r, i]
    """
    for segment, lora in weights.pairs(segments):
        for row in range(segment.start, segment.end):
            at, grad = x[row].double(), grad_y[row].double() * lora.scaling
            grad_h = lora.Bt.double() @ grad
            if lora.grad_A is not None:
                lora.grad_A.add_(grad_h.outer(at))
            if lora.grad_Bt is not None:
                lora.grad_Bt.add_((lora.A.double() @ at).outer(grad))
            if grad_x is not None:
                grad_x[row] += (lora.A.double().t() @ grad_h).to(grad_x.dtype)


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    spans: PagedSpans,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """out[t, a, v] = Σ_n softmax_n(cap(scaling · Σ_k q[t, a, k] K[n, g, k]), sink_a) V[n, g, v] over the n that row t sees.

    q [rows, heads, K]; keys [pages, page tokens, key heads, K] and values [., ., ., V], token n of a sequence in page table[sequence,
    n // page tokens]; cap(s) = softcap · tanh(s / softcap). g = a // (heads / key heads). A row at position p sees p - window < n ≤ p.
    Rows in no span are zero.
    """
    out = q.new_zeros(q.shape[0], q.shape[1], values.shape[3])
    for span in spans.items:
        pages = table[span.sequence].long()
        for row in range(span.start, span.end):
            position = span.position + row - span.start
            seen = slice(0 if window is None else max(0, position + 1 - window), position + 1)
            k, v = (side[pages].flatten(0, 1)[seen].repeat_interleave(q.shape[1] // keys.shape[2], 1).double() for side in (keys, values))
            logits = torch.einsum("ak,nak->an", q[row].double(), k) * scaling
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            sink = logits.new_empty(q.shape[1], 0) if sinks is None else sinks.double()[:, None]
            weights = torch.cat([logits, sink], 1).softmax(1)[:, : len(k)]
            out[row] = torch.einsum("an,nav->av", weights, v).to(q.dtype)
    return out


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
    """paged_attention of whole sequences whose keys and values are the pass's own rows: k [rows, key heads, K], v [rows, key heads, V]."""
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
    """The gradients of q, k and v, Σ over out's numbers of grad_out times their derivative, as autograd has them over packed_attention."""
    sides = [side.double().requires_grad_() for side in (q, k, v)]
    again = packed_attention(sides[0], sides[1], sides[2], spans, scaling, window, softcap, sinks)
    if again.requires_grad:  # not so when no span has a row
        torch.autograd.backward(again, grad_out.double())
    found = [torch.zeros_like(side) if side.grad is None else side.grad for side in sides]
    return found[0].to(q.dtype), found[1].to(k.dtype), found[2].to(v.dtype)
