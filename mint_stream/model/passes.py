"""A pass: many pieces of sequences packed into one row of tokens, with what attention and LoRA need to keep them apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mint_stream.kernels import LoraWeights, Segment, Segments, SiteWeights, SliceWeights
from mint_stream.kernels.placing import placed

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """Rows start ≤ row < end are the tokens at `position`, `position + 1`, ... of one sequence, whose cache is `slot`.

    `slot` -1: the span is a whole sequence (position 0) and nothing is cached.
    """

    start: int
    end: int
    position: int = 0
    slot: int = -1

    @property
    def rows(self) -> int:
        """How many tokens of the sequence this pass computes."""
        return self.end - self.start

    @property
    def length(self) -> int:
        """Tokens of the sequence up to the end of this span."""
        return self.position + self.rows


class AdapterSet:
    """The adapters of a pass, slot by slot, and for each layer what they have there. Build once, use for every pass with the same set."""

    def __init__(self, layers: Sequence[Mapping[str, LoraWeights]]) -> None:
        self.layers = tuple(layers)
        self._sites: dict[str, SiteWeights | None] = {}
        self._slices: dict[tuple[str, ...], SliceWeights | None] = {}

    def site(self, path: str) -> SiteWeights | None:
        """Weights of the layer at `path`; None when no adapter of the set targets it."""
        if path not in self._sites:
            self._sites[path] = self._made(path)
        return self._sites[path]

    def slices(self, paths: tuple[str, ...]) -> SliceWeights | None:
        """Weights of layers that read the same input; None when no adapter of the set targets any of them."""
        if paths not in self._slices:
            sites = [self.site(path) for path in paths]
            self._slices[paths] = SliceWeights(sites) if any(site is not None for site in sites) else None
        return self._slices[paths]

    def _made(self, path: str) -> SiteWeights | None:
        at = [layers.get(path) for layers in self.layers]
        return SiteWeights(at) if any(at) else None


NO_ADAPTERS = AdapterSet(())


@dataclass(frozen=True)
class Pages:
    """A layer's keys and values, each [pages, page tokens, kv_heads, width]; a sequence's own are in the pages of its line of `table`."""

    keys: Tensor
    values: Tensor
    table: Tensor
    """int32 [slots, pages a sequence]"""


class KeyValues(Protocol):
    """Where attention reads what earlier passes wrote."""

    def layer(self, index: int) -> tuple[Tensor, Tensor] | Pages:
        """Keys and values of a layer, each [slots, kv_heads, tokens, width], or in pages."""

    def gathered(self, index: int, pass_: "Pass") -> tuple[Tensor, Tensor]:
        """Keys and values [1, kv_heads, cached rows, width] of all that the pass's sequences have, one sequence after the other."""

    def state(self, name: object, like: Tensor | None = None) -> Tensor:
        """[slots, ...]: what layers keep of a sequence besides keys and values. Made of the shape of `like` [sequences, ...] at first."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values [1, kv_heads, rows, width]; give them back unchanged."""


@dataclass(frozen=True)
class PassInputs:
    """What a model's forward is given: tokens and positions [1, T], and which rows to get logits for [selected]."""

    tokens: Tensor
    positions: Tensor
    selected: Tensor


INPUTS, PAGED_SPANS = "inputs", "paged spans"
"""Of a pass's scratch: what a graph's passes bring with them."""


@dataclass(frozen=True)
class Pass:
    """One forward pass [1, T]. `segments` say which rows belong to which slot of `adapters`; `selected` are the rows to get logits for."""

    tokens: tuple[int, ...]
    spans: tuple[Span, ...]
    selected: tuple[int, ...]
    segments: Segments
    adapters: AdapterSet = NO_ADAPTERS
    training: bool = False
    """Gradients flow to the inputs of every layer and into the adapters' gradient slices."""
    scratch: dict[object, Any] = field(default_factory=dict, compare=False)
    """What layers compute once a pass and share: masks, row indices, which spans go together."""

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Each row's position in its own sequence."""
        return tuple(position for span in self.spans for position in range(span.position, span.length))

    @cached_property
    def selected_segments(self) -> Segments:
        """The row space of lm_head: only the selected rows."""
        if self.selected == tuple(range(self.segments.rows)):
            return self.segments
        return self.segments.select(self.selected)

    def inputs(self, device: torch.device) -> PassInputs:
        """On the device that the model is on."""
        numbers = ((self.tokens,), (self.positions,), self.selected)
        return self.shared(INPUTS, lambda: PassInputs(*(placed(torch.tensor(one, dtype=torch.long), device) for one in numbers)))

    @property
    def cached_rows(self) -> int:
        """Tokens of all its sequences up to the end of this pass."""
        return sum(span.length for span in self.spans)

    @cached_property
    def cached_segments(self) -> Segments:
        """The row space of layers that run over all that is cached (MLA's kv_b_proj): each sequence's tokens, one after the other."""
        slots = self.segments.slots()
        ends = accumulate(span.length for span in self.spans)
        found = ((span, end, slots[span.start]) for span, end in zip(self.spans, ends, strict=True) if span.rows)
        items = tuple(Segment(end - span.length, end, slot) for span, end, slot in found if slot >= 0)
        return Segments(items, self.cached_rows)

    def shared(self, key: object, make: Callable[[], T]) -> T:
        """`make()` the first time a layer of this pass asks for `key`, the same tensor from then on."""
        if key not in self.scratch:
            self.scratch[key] = make()
        shared: T = self.scratch[key]
        return shared


def pack(sequences: Sequence[tuple[Sequence[int], int]], selected: Sequence[int] | None = None, **rest: Any) -> Pass:
    """Whole sequences [(tokens, adapter slot or -1)] in one pass, for training and scoring. `selected`: rows, all by default."""
    tokens: list[int] = []
    spans: list[Span] = []
    slots: list[int] = []
    for ids, slot in sequences:
        spans.append(Span(len(tokens), len(tokens) + len(ids)))
        tokens.extend(ids)
        slots.extend([slot] * len(ids))
    rows = tuple(range(len(tokens))) if selected is None else tuple(selected)
    return Pass(tuple(tokens), tuple(spans), rows, Segments.of_slots(slots), **rest)
