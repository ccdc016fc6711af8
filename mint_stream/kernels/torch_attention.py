"""Attention by torch's own operators: over batches of one length, and over pages where the Triton kernels cannot read the heads."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from mint_stream.kernels.attention_plan import PagedSpans
from mint_stream.kernels.attention_rule import Rule


def paged_attention(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, spans: PagedSpans, rule: Rule) -> Tensor:
    """As reference.paged_attention, but rows in no span hold anything. One span after the other."""
    out = q.new_empty(q.shape[0], q.shape[1], values.shape[3])
    for span in spans.items:
        length, pages = span.position + span.end - span.start, table[span.sequence].long()
        k, v = (side[pages[: -(-length // side.shape[1])]].flatten(0, 1)[:length].transpose(0, 1)[None] for side in (keys, values))
        key = ("by torch", span, rule.window)
        if key not in spans.kept:
            spans.kept[key] = causal_mask(span.position, length, rule.window, q)
        rows = q[span.start : span.end].transpose(0, 1)[None]
        out[span.start : span.end] = attend(rows, k.to(q.dtype), v.to(q.dtype), spans.kept[key], rule)[0].transpose(0, 1)
    return out


def causal_mask(position: int, length: int, window: int | None, like: Tensor) -> Tensor:
    """[1, 1, rows, length] for the rows from `position` to `length`: 0 where a row may look, -inf where it may not."""
    rows = torch.arange(position, length, device=like.device)[:, None]
    columns = torch.arange(length, device=like.device)[None, :]
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)[None, None]


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
