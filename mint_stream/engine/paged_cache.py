"""Keys and values in pages of a fixed number of tokens, for kernels that find them through a table. For devices."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from mint_stream.engine.pages import NOBODYS, PagePool
from mint_stream.engine.prefixes import Reuse
from mint_stream.engine.recurrent_states import RecurrentStates
from mint_stream.errors import InvalidSettings
from mint_stream.kernels.placing import placed
from mint_stream.model.pass_cache import PassCache
from mint_stream.model.passes import Pages, Pass, Span

PAGE_TOKENS = 16
"""A multiple of it is what one CTA of attention reads at a time."""


class PagedCache(PassCache):
    """A layer's keys are [pages, page tokens, kv_heads, width] in memory; nothing is read beyond a sequence's own tokens.

    Slots number the sequences: lines of the table, and of recurrent states. One line more, `nobodys_slot`, is for rows that only fill a
    pass up.
    """

    def __init__(self, slots: int, slot_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        """Room for `slots` sequences of `slot_tokens`, until `limit` says otherwise."""
        super().__init__()
        self.slots, self.slot_tokens, self.nobodys_slot = slots, slot_tokens, slots
        self._dtype, self._device = dtype, device
        width = -(-slot_tokens // PAGE_TOKENS)
        self._pool = PagePool(slots * width, PAGE_TOKENS)
        self._free = list(range(slots))
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}
        self._states = RecurrentStates()
        self._lines = torch.zeros(slots + 1, width, dtype=torch.int32)
        self.table = self._lines.to(device, copy=True)
        """int32 [slots + 1, pages a sequence], for ever at the same place, as graphs want it."""
        self._outdated = False
        self._rows = torch.empty(0, dtype=torch.long, device=device)

    @property
    def free_slots(self) -> int:
        """How many sequences more would have a line."""
        return len(self._free)

    @property
    def spare_pages(self) -> int:
        """Pages that no sequence has or was promised."""
        return self._pool.spare

    @property
    def page_bytes(self) -> int:
        """Of one page in all layers that were written to so far."""
        sides = (side for pair in self._stored.values() for side in pair)
        return sum(side[0].numel() * side.element_size() for side in sides)

    def head_widths(self, besides: frozenset[int] = frozenset()) -> frozenset[int]:
        """Numbers of a head's key or value in all layers that were written to so far, but those `besides`."""
        layers = (pair for index, pair in self._stored.items() if index >= 0 and index not in besides)
        return frozenset(side.shape[3] for pair in layers for side in pair)

    def limit(self, pages: int) -> None:
        """Have no more than so many pages, from before the first sequence on. Raises InvalidSettings when one sequence would not fit."""
        fewest = -(-self.slot_tokens // PAGE_TOKENS)
        if pages < fewest:
            raise InvalidSettings(
                f"keys and values have room for {pages * PAGE_TOKENS} tokens, and one sequence may have {self.slot_tokens}: "
                "raise MINT_SERVING__KV_CACHE_BYTES or lower MINT_SERVING__CONTEXT_TOKENS"
            )
        self._pool = PagePool(min(pages, self._pool.pages), PAGE_TOKENS)

    def take(self, maker: Hashable = None, tokens: Sequence[int] = (), reuse: bool = True, length: int | None = None) -> Reuse | None:
        """A slot, and pages by and by, for a sequence of up to `length` tokens that `maker` computes; None when there is no room now.

        Full pages that others by the same maker have of the same beginning are shared.
        """
        slot = self._free[0]
        whole = bool(self._states)  # a recurrent state is its whole sequence's: no beginning can be told from it
        known = self._pool.open(slot, maker, tokens, length or self.slot_tokens, reuse and not whole)
        if known is None:
            return None
        del self._free[0]
        self._write_line(slot)
        return Reuse(slot, known)

    def advance(self, slot: int, computed: int) -> None:
        """The slot now has keys and values of the first `computed` tokens of its sequence."""
        self._pool.advance(slot, computed)

    def release(self, slot: int, keep: bool = False) -> None:
        """Give a slot back. To `keep` offers its full pages to later sequences; only finite numbers may be kept."""
        self._pool.close(slot, keep)
        self._free.insert(0, slot)

    @torch.inference_mode()
    def place(self, pass_: Pass, into: Tensor | None = None) -> None:
        """Where the rows of the next pass are written; that is put `into` a tensor [rows] which passes of a graph read, if one is given."""
        for span in pass_.spans:
            if span.slot != self.nobodys_slot and self._pool.reach(span.slot, span.length):
                self._write_line(span.slot)
        if self._outdated:
            self.table.copy_(placed(self._lines, self._device), non_blocking=True)
            self._outdated = False
        rows = [row for span in pass_.spans for row in self._rows_of(span, span.position)]
        fresh = placed(torch.tensor(rows, dtype=torch.long), self._device)
        self._rows = fresh if into is None else into.copy_(fresh)

    def state(self, name: object, like: Tensor | None = None) -> Tensor:
        """As SlottedCache.state."""
        return self._states.of(name, like, self.slots)

    def layer(self, index: int) -> Pages:
        """Keys and values as kernels read them."""
        return Pages(*self._stored[index], self.table)

    def gathered(self, index: int, pass_: Pass) -> tuple[Tensor, Tensor]:
        """Keys and values [1, kv_heads, cached rows, width] of all that the pass's sequences have, one sequence after the other."""
        rows = pass_.shared("cached rows", lambda: self._cached_rows(pass_))
        keys, values = (side.flatten(0, 1).index_select(0, rows).transpose(0, 1)[None] for side in self._stored[index])
        return keys, values

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values [1, kv_heads, rows, width] to the places of `place`; give them back."""
        if layer_idx not in self._stored:
            self._stored[layer_idx] = (self._arena(keys), self._arena(values))
        for stored, fresh in zip(self._stored[layer_idx], (keys, values), strict=True):
            stored.flatten(0, 1).index_copy_(0, self._rows, fresh[0].transpose(0, 1))
        return keys, values

    def _cached_rows(self, pass_: Pass) -> Tensor:
        rows = [row for span in pass_.spans for row in self._rows_of(span, 0)]
        return placed(torch.tensor(rows, dtype=torch.long), self._device)

    def _rows_of(self, span: Span, begin: int) -> list[int]:
        """The places, among all tokens of all pages, of a sequence's tokens begin ≤ position < the span's end."""
        pages = [NOBODYS] if span.slot == self.nobodys_slot else self._pool.table(span.slot)
        return [pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS for position in range(begin, span.length)]

    def _write_line(self, slot: int) -> None:
        pages = self._pool.table(slot)
        self._lines[slot, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        self._outdated = True

    def _arena(self, like: Tensor) -> Tensor:
        return torch.zeros(1 + self._pool.pages, PAGE_TOKENS, like.shape[1], like.shape[3], dtype=self._dtype, device=self._device)
