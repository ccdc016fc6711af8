"""What goes into the batcher's plan and what comes out of it."""

from collections.abc import Hashable
from dataclasses import dataclass

from mint_stream.engine.generation import Lane


@dataclass(frozen=True)
class Budgets:
    """How much one step may hold."""

    max_num_seqs: int = 32
    max_num_batched_tokens: int = 256
    """Rows of one step: decode rows plus prefill chunks."""
    max_adapters: int = 16
    """Distinct adapters among running sequences; the bare base counts as none."""
    ageing_s: float = 2.0
    """A sequence that waited this long is overtaken by none that came later in its lane."""
    bulk_floor: float = 0.125
    """Share of max_num_seqs (at least one) that the online lane leaves to waiting bulk sequences."""

    def __post_init__(self) -> None:
        if min(self.max_num_seqs, self.max_adapters) < 2 or not 0.0 <= self.bulk_floor <= 0.5:
            raise ValueError(f"max_num_seqs and max_adapters must be at least 2 (each lane keeps one), bulk_floor at most 0.5: {self}")
        if self.max_num_batched_tokens <= self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must exceed max_num_seqs: every running sequence advances in every step")

    @property
    def bulk_seqs(self) -> int:
        """Sequences kept free of the online lane while bulk waits."""
        return max(1, int(self.bulk_floor * self.max_num_seqs))

    @property
    def bulk_tokens(self) -> int:
        """Rows of a step kept free of online prefill while bulk has prompt to compute."""
        return max(1, int(self.bulk_floor * (self.max_num_batched_tokens - self.max_num_seqs)))


@dataclass(frozen=True)
class Waiting:
    """A sequence asking for a place. `key` names it from now on."""

    key: int
    prompt_tokens: int
    adapter: Hashable | None
    lane: Lane
    arrived_at_s: float
    deadline_at_s: float | None = None


@dataclass(frozen=True)
class Rows:
    """In this step the sequence `key` computes its tokens start ≤ position < start + count; `samples`: the last of them gets logits."""

    key: int
    start: int
    count: int
    samples: bool


@dataclass(frozen=True)
class Step:
    """One forward pass. `admitted` take a slot now; `expired` passed their deadline, waiting or running, and are forgotten."""

    rows: tuple[Rows, ...]
    admitted: tuple[int, ...]
    expired: tuple[int, ...]
