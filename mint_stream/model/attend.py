"""The arithmetic of packed attention: one span by itself, or the decode rows of many sequences together."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from mint_stream.model.passes import Pass, Span


@dataclass(frozen=True)
class Rule:
    """What a layer asks of attention besides causality."""

    scaling: float
    window: int | None = None
    """Tokens visible to a row, itself included; None: all of them."""
    softcap: float | None = None
    sinks: Tensor | None = None
    """[heads]: a logit a head that takes part in the softmax and has no value."""


def split(pass_: Pass) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """(decode spans computed together, spans computed one by one). Far longer sequences than most go alone: padding is work."""
    decode = sorted((span for span in pass_.spans if span.rows == 1 and span.position > 0), key=lambda span: span.length)
    limit = 2 * decode[len(decode) // 2].length + 256 if decode else 0
    together = tuple(sorted((span for span in decode if span.length <= limit), key=lambda span: span.slot))
    if len(together) < 2:
        together = ()
    chosen = {span.start for span in together}
    return together, tuple(span for span in pass_.spans if span.start not in chosen)


def one(span: Span, query: Tensor, key: Tensor, value: Tensor, stored: tuple[Tensor, Tensor] | None, rule: Rule, pass_: Pass) -> Tensor:
    """[rows, heads, value width] of one span."""
    q = query[:, :, span.start : span.end]
    if stored is None or span.position == 0:
        k, v = key[:, :, span.start : span.end], value[:, :, span.start : span.end]
    else:
        k, v = (side[span.slot : span.slot + 1, :, : span.length] for side in stored)
    window = None if rule.window is None or rule.window >= span.length else rule.window
    if span.position == 0 and window is None and rule.softcap is None and rule.sinks is None:
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=rule.scaling, enable_gqa=True)
        return out[0].transpose(0, 1)
    mask = pass_.shared(("one", span, window), lambda: causal_mask(span, window, q))
    return attend(q, k, v, mask, rule)[0].transpose(0, 1)


def causal_mask(span: Span, window: int | None, like: Tensor) -> Tensor:
    """[1, 1, rows, length]: 0 where a row may look, -inf where it may not."""
    rows = torch.arange(span.position, span.length, device=like.device)[:, None]
    columns = torch.arange(span.length, device=like.device)[None, :]
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)[None, None]


def many(spans: tuple[Span, ...], query: Tensor, stored: tuple[Tensor, Tensor], rule: Rule, pass_: Pass, out: Tensor) -> None:
    """Decode rows of many sequences at once, written to their rows of out [T, heads, value width]."""
    longest = max(span.length for span in spans)
    rows = pass_.shared("decode rows", lambda: torch.tensor([span.start for span in spans], device=query.device))
    k, v = _gathered(spans, stored, longest, pass_)
    q = query[0].transpose(0, 1).index_select(0, rows).unsqueeze(2)
    mask = pass_.shared(("many", rule.window), lambda: _lengths_mask(spans, longest, rule.window, q))
    out.index_copy_(0, rows, attend(q, k, v, mask, rule).squeeze(2))


def _gathered(spans: tuple[Span, ...], stored: tuple[Tensor, Tensor], longest: int, pass_: Pass) -> tuple[Tensor, Tensor]:
    """Keys and values of the spans' slots: a view where the slots are neighbours, a copy where they are scattered."""
    first, last = spans[0].slot, spans[-1].slot
    if last - first + 1 == len(spans):
        k, v = (side[first : last + 1, :, :longest] for side in stored)
        return k, v
    slots = pass_.shared("decode slots", lambda: torch.tensor([span.slot for span in spans], device=stored[0].device))
    k, v = (side[:, :, :longest].index_select(0, slots) for side in stored)
    return k, v


def _lengths_mask(spans: tuple[Span, ...], longest: int, window: int | None, like: Tensor) -> Tensor:
    """[spans, 1, 1, longest]: 0 where a sequence's next row may look."""
    lengths = torch.tensor([span.length for span in spans], device=like.device)[:, None]
    columns = torch.arange(longest, device=like.device)[None, :]
    hidden = columns >= lengths
    if window is not None:
        hidden |= columns < lengths - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)[:, None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    """softmax(softcap(q kᵀ · scaling) + mask, sinks) v.

    q [b, heads, rows, width], k and v [b, kv_heads, length, ...], mask [b or 1, 1, rows, length] → [b, heads, rows, value width].
    """
    batch, heads, rows, _ = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads * rows, q.shape[-1])
    wide = mask if rows == 1 else mask.repeat(1, 1, heads // kv_heads, 1)
    if rule.softcap is None and rule.sinks is None:
        out = functional.scaled_dot_product_attention(
            grouped, k, v, attn_mask=wide.expand(-1, -1, grouped.shape[2], -1), scale=rule.scaling
        )
    else:
        out = _plainly(grouped, k, v, wide, replace(rule, sinks=_sinks_by_row(rule.sinks, kv_heads, rows)))
    return out.reshape(batch, heads, rows, v.shape[-1])


def _sinks_by_row(sinks: Tensor | None, kv_heads: int, rows: int) -> Tensor | None:
    """[heads] → [kv_heads, heads / kv_heads · rows], the order of grouped queries."""
    return None if sinks is None else sinks.view(kv_heads, -1, 1).expand(-1, -1, rows).reshape(kv_heads, -1)


def _plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    scores = (q @ k.transpose(2, 3)) * rule.scaling
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = (scores + mask).float()
    if rule.sinks is None:
        return scores.softmax(-1).to(q.dtype) @ v
    sinks = rule.sinks.to(scores)[None, :, :, None].expand(scores.shape[0], -1, -1, -1)
    weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    return weights.to(q.dtype) @ v
