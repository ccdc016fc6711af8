"""Keys and values of the running sequences, one slot of fixed length a sequence, in memory that the system commits only when touched."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from mint_stream.engine.memory import zeros_when_touched
from mint_stream.engine.prefixes import Reuse, SlotContents
from mint_stream.engine.recurrent_states import RecurrentStates
from mint_stream.model.pass_cache import PassCache
from mint_stream.model.passes import Pass


class SlottedCache(PassCache):
    """A layer's keys are [slots, tokens, kv_heads, width] in memory. Stock models call `update`; our attention reads `layer`.

    Places without a sequence's own numbers hold zeros or an earlier sequence's finite ones, so that masked reads of them are finite.
    """

    def __init__(self, slots: int, slot_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.slots, self.slot_tokens = slots, slot_tokens
        self._dtype, self._device = dtype, device
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}
        self._states = RecurrentStates()
        self._contents = SlotContents(slots)
        self._rows = torch.empty(0, dtype=torch.long, device=device)

    @property
    def free_slots(self) -> int:
        """How many sequences more would fit."""
        return self._contents.free

    @property
    def nbytes(self) -> int:
        """Bytes when every slot is full."""
        tensors = [*self._states.values(), *(side for pair in self._stored.values() for side in pair)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @torch.inference_mode()
    def take(self, maker: Hashable = None, tokens: Sequence[int] = (), reuse: bool = True, length: int | None = None) -> Reuse:
        """A slot for a sequence that `maker` (whose weights: a digest) computes, and how many of its `tokens` are in it already.

        What another slot holds of the same beginning by the same maker is copied; the last of `tokens` is never among it.
        """
        whole = bool(self._states)  # a recurrent state is its whole sequence's: no beginning can be told from it
        found = self._contents.longest(maker, tokens) if reuse and not whole else None
        slot = self._contents.take(found.slot if found is not None else None)
        known = found.tokens if found is not None else 0
        if found is not None and found.slot != slot:
            for pair in self._stored.values():
                for side in pair:
                    side[slot, :known] = side[found.slot, :known]
        self._contents.hold(slot, maker, tokens, known)
        return Reuse(slot, known)

    def advance(self, slot: int, computed: int) -> None:
        """The slot now has keys and values of the first `computed` tokens of its sequence."""
        self._contents.advance(slot, computed)

    @torch.inference_mode()
    def release(self, slot: int, keep: bool = False) -> None:
        """Give a slot back. To `keep` offers its contents to later sequences; only finite numbers may be kept, others are zeroed."""
        for pair in self._stored.values() if not keep else ():
            for side in pair:
                side[slot, : self._contents.computed(slot)].zero_()
        self._contents.release(slot, keep)

    def place(self, pass_: Pass, into: Tensor | None = None) -> None:
        """Where the rows of the next pass are written."""
        rows = [span.slot * self.slot_tokens + position for span in pass_.spans for position in range(span.position, span.length)]
        fresh = torch.tensor(rows, dtype=torch.long, device=self._device)
        self._rows = fresh if into is None else into.copy_(fresh)

    def state(self, name: object, like: Tensor | None = None) -> Tensor:
        """[slots, ...] under `name`; made of the shape of `like` [sequences, ...] at first. A slot taken anew has its last one's."""
        return self._states.of(name, like, self.slots)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values, each [slots, kv_heads, tokens, width], as views."""
        keys, values = self._stored[index]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def gathered(self, index: int, pass_: Pass) -> tuple[Tensor, Tensor]:
        """Keys and values [1, kv_heads, cached rows, width] of all that the pass's sequences have, one sequence after the other."""
        keys, values = (
            torch.cat([stored[span.slot : span.slot + 1, :, : span.length] for span in pass_.spans], dim=2) for stored in self.layer(index)
        )
        return keys, values

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values [1, kv_heads, rows, width] to the places of `place`; give them back."""
        if layer_idx not in self._stored:
            self._stored[layer_idx] = (self._arena(keys), self._arena(values))
        for stored, fresh in zip(self._stored[layer_idx], (keys, values), strict=True):
            stored.view(-1, *stored.shape[2:]).index_copy_(0, self._rows, fresh[0].transpose(0, 1))
        return keys, values

    def _arena(self, like: Tensor) -> Tensor:
        shape = (self.slots, self.slot_tokens, like.shape[1], like.shape[3])
        return (
            zeros_when_touched(shape, self._dtype)
            if self._device.type == "cpu"
            else torch.zeros(shape, dtype=self._dtype, device=self._device)
        )
