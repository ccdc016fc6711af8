"""The arithmetic of packed attention: one span by itself, or the decode rows of many sequences together."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mint_stream.kernels import native
from mint_stream.kernels.attention_rule import Rule
from mint_stream.kernels.torch_attention import attend, causal_mask
from mint_stream.model.passes import Pass, Span


def packed(query: Tensor, key: Tensor, value: Tensor, stored: tuple[Tensor, Tensor], rule: Rule, pass_: Pass) -> Tensor:
    """[T, heads, value width] of a pass whose sequences are in `stored`; query, key and value as mint_attention's."""
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    by_kernel = native.takes_attention(query[0].transpose(0, 1), stored[0], stored[1], out)
    together, alone = pass_.shared(("split", by_kernel), lambda: split(pass_, padded=not by_kernel))
    for span in alone:
        out[span.start : span.end] = one(span, query, key, value, stored, rule, pass_)
    if together:
        many(together, query, stored, rule, pass_, out, by_kernel)
    return out


def split(pass_: Pass, padded: bool) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """(decode spans computed together, spans computed one by one).

    Where those together are `padded` to the longest, sequences far longer than most go alone. A single row goes the way that the prompt's
    rows go: asked again, when all of its prompt but the last token is in the cache, a request has the bits it had at first.
    """
    decode = sorted((span for span in pass_.spans if span.rows == 1 and span.position > 0), key=lambda span: span.length)
    limit = 2 * decode[len(decode) // 2].length + 256 if decode and padded else math.inf
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
    mask = pass_.shared(("one", span, window), lambda: causal_mask(span.position, span.length, window, q))
    return attend(q, k, v, mask, rule)[0].transpose(0, 1)


@dataclass(frozen=True)
class _Seats:
    """Decode rows side by side: seat i reads the cache's slot first + i, or slots[i] where they are too scattered to be read through."""

    first: int
    rows: Tensor
    """[seats]: the row of the pass in each seat. A seat nobody sits in repeats one, and its outcome is not used."""
    lengths: tuple[int, ...]
    slots: Tensor | None = None
    kept: Tensor | None = None
    """Seats that somebody sits in; None: all."""
    kept_rows: Tensor | None = None

    @classmethod
    def of(cls, spans: tuple[Span, ...], device: torch.device) -> "_Seats":
        """For spans of one row each, in the order of their slots."""
        starts = torch.tensor([span.start for span in spans], device=device)
        first, seats = spans[0].slot, spans[-1].slot - spans[0].slot + 1
        if seats == len(spans):
            return cls(first, starts, tuple(span.length for span in spans))
        if seats > 2 * len(spans):  # reading past so many others costs more than bringing these together
            slots = torch.tensor([span.slot for span in spans], device=device)
            return cls(first, starts, tuple(span.length for span in spans), slots)
        taken = {span.slot - first: span for span in spans}
        rows = torch.tensor([taken[seat].start if seat in taken else spans[0].start for seat in range(seats)], device=device)
        lengths = tuple(taken[seat].length if seat in taken else 1 for seat in range(seats))
        return cls(first, rows, lengths, None, torch.tensor(list(taken), device=device), starts)

    def read(self, stored: Tensor) -> Tensor:
        """[seats, kv_heads, longest, width] of the cache's [slots, kv_heads, tokens, width]."""
        longest = max(self.lengths)
        if self.slots is not None:
            return stored[:, :, :longest].index_select(0, self.slots)
        return stored[self.first : self.first + len(self.lengths), :, :longest]

    def write(self, attended: Tensor, out: Tensor) -> None:
        """Put the seats' outcome [seats, ...] in their rows of out."""
        if self.kept is None or self.kept_rows is None:
            out.index_copy_(0, self.rows, attended)
        else:
            out.index_copy_(0, self.kept_rows, attended.index_select(0, self.kept))


def many(
    spans: tuple[Span, ...], query: Tensor, stored: tuple[Tensor, Tensor], rule: Rule, pass_: Pass, out: Tensor, by_kernel: bool
) -> None:
    """Decode rows of many sequences at once, written to their rows of out [T, heads, value width]. `by_kernel`: by native's."""
    rows = query[0].transpose(0, 1)
    if by_kernel:
        sequences = pass_.shared("many", lambda: torch.tensor([(span.start, span.slot, span.length) for span in spans]))
        return native.attend(rows, stored[0], stored[1], sequences, out, *rule.arguments())
    seats = pass_.shared("seats", lambda: _Seats.of(spans, query.device))
    q = rows.index_select(0, seats.rows).unsqueeze(2)
    mask = pass_.shared(("many", rule.window), lambda: _lengths_mask(seats.lengths, rule.window, q))
    return seats.write(attend(q, seats.read(stored[0]), seats.read(stored[1]), mask, rule).squeeze(2), out)


def _lengths_mask(lengths: tuple[int, ...], window: int | None, like: Tensor) -> Tensor:
    """[sequences, 1, 1, longest]: 0 where a sequence's next row may look."""
    ends = torch.tensor(lengths, device=like.device)[:, None]
    columns = torch.arange(max(lengths), device=like.device)[None, :]
    hidden = columns >= ends
    if window is not None:
        hidden |= columns < ends - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)[:, None, None]
