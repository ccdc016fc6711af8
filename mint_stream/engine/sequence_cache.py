"""What the engine asks of a cache of keys and values, however it keeps them: slots of full length, or pages."""

from collections.abc import Hashable, Sequence
from typing import Protocol

from torch import Tensor

from mint_stream.engine.prefixes import Reuse
from mint_stream.model.passes import KeyValues, Pass


class SequenceCache(KeyValues, Protocol):
    """Sequences come, grow and go; models read and write by the pass that was placed last."""

    @property
    def free_slots(self) -> int:
        """How many sequences more may come, if there is memory."""

    def take(self, maker: Hashable = None, tokens: Sequence[int] = (), reuse: bool = True, length: int | None = None) -> Reuse | None:
        """A slot for a sequence of up to `length` tokens, by default the most there may be, and how many of `tokens` it has already.

        `maker`: whose weights compute it, a digest. None: there is no memory for it now."""

    def advance(self, slot: int, computed: int) -> None:
        """The slot now has keys and values of the first `computed` tokens of its sequence."""

    def release(self, slot: int, keep: bool = False) -> None:
        """Give a slot back. To `keep` offers its contents to later sequences; only finite numbers may be kept."""

    def place(self, pass_: Pass, into: Tensor | None = None) -> None:
        """Where the rows of the next pass are written."""
