"""What a decode step tells its graph: tensors that stay where they are, filled anew before each replay."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from mint_stream.engine.decode_shapes import Shape
from mint_stream.kernels import Bound, Segments, SiteWeights, SliceWeights
from mint_stream.kernels.attention_plan import PagedSpan
from mint_stream.kernels.bound_attention import BoundAttention
from mint_stream.kernels.bound_weights import BoundWeights
from mint_stream.kernels.placing import placed
from mint_stream.kernels.tiles import ROWS
from mint_stream.kernels.worklist import cut
from mint_stream.model.passes import INPUTS, NO_ADAPTERS, PAGED_SPANS, AdapterSet, Pass, PassInputs, Span


class BoundAdapters(AdapterSet):
    """Adapters that are not known yet: what layers look up is in tables."""

    def __init__(self, weights: BoundWeights) -> None:
        super().__init__(())
        self._weights = weights

    def slices(self, paths: tuple[str, ...]) -> SliceWeights | None:
        """The same for every pass, as all graphs read the same tables."""
        if paths not in self._slices:
            self._slices[paths] = self._weights.slices(paths)
        return self._slices[paths]

    def site(self, path: str) -> SiteWeights | None:
        """None: whose adapters have bare parameters has no graph."""
        return None


class DecodeTables:
    """For steps of up to `most_rows` rows, each of up to `most_planes` planes, and adapters of the layers at `paths`."""

    def __init__(self, most_rows: int, most_planes: int, paths: Sequence[str], slots: int, device: torch.device) -> None:
        self._device = device
        self._numbers = torch.zeros(2, most_rows, dtype=torch.long, device=device)
        self._selected = torch.arange(most_rows, device=device)
        self._places = torch.zeros(most_rows, dtype=torch.long, device=device)
        self._items = torch.zeros(most_rows, 4, dtype=torch.int32, device=device)
        self._attention = BoundAttention(most_rows, most_planes, device)
        self._weights = BoundWeights(paths, slots, device)
        self._adapters = BoundAdapters(self._weights)
        self._loaded: ref[AdapterSet] | None = None
        self._ranks: WeakKeyDictionary[AdapterSet, int | None] = WeakKeyDictionary()

    def rank(self, adapters: AdapterSet) -> int | None:
        """The largest of these adapters', looked for once; None when they have something that cannot be looked up here."""
        if adapters not in self._ranks:
            held = self._weights.holds(adapters.layers)
            ranks = (lora.rank for layers in adapters.layers for lora in layers.values())
            self._ranks[adapters] = max(ranks, default=0) if held else None
        return self._ranks[adapters]

    def places(self, shape: Shape) -> Tensor:
        """[rows]: where keys and values are written."""
        return self._places[: shape.rows]

    def template(self, shape: Shape) -> Pass:
        """The pass that a graph of this shape computes. Its spans are nobody's: where its rows are is in the tables."""
        rows = shape.rows
        inputs = PassInputs(self._numbers[:1, :rows], self._numbers[1:, :rows], self._selected[:rows])
        scratch: dict[object, Any] = {INPUTS: inputs, PAGED_SPANS: self._attention.spans(rows, shape.planes)}
        bound = Bound(self._items[: shape.items], shape.rank) if shape.items else None
        adapters = self._adapters if shape.items else NO_ADAPTERS
        spans = tuple(Span(row, row + 1) for row in range(rows))
        return Pass((0,) * rows, spans, tuple(range(rows)), Segments((), rows, bound=bound), adapters, scratch=scratch)

    def fill(self, shape: Shape, pass_: Pass) -> None:
        """From now on `pass_`, of the shape's rows, is what graphs of this shape compute."""
        numbers = torch.tensor([pass_.tokens, pass_.positions], dtype=torch.long)
        self._numbers[:, : shape.rows].copy_(placed(numbers, self._device), non_blocking=True)
        self._attention.fill([PagedSpan(span.start, span.end, span.position, span.slot) for span in pass_.spans], shape.planes)
        if shape.items:
            self._load(pass_.adapters)
            items = [(item.start, item.rows, item.slot, 0) for item in cut(pass_.segments, ROWS[0])]
            items += [(0, 0, 0, 0)] * (shape.items - len(items))
            self._items[: shape.items].copy_(placed(torch.tensor(items, dtype=torch.int32), self._device), non_blocking=True)

    def _load(self, adapters: AdapterSet) -> None:
        if adapters.layers and (self._loaded is None or self._loaded() is not adapters):
            self._weights.load(adapters.layers)
            self._loaded = ref(adapters)


def filled_up(pass_: Pass, rows: int, slot: int) -> Pass:
    """`pass_` with rows of nobody's at its end, `rows` in all."""
    have = len(pass_.tokens)
    spans = (*pass_.spans, *(Span(row, row + 1, 0, slot) for row in range(have, rows)))
    tokens = (*pass_.tokens, *(0,) * (rows - have))
    return Pass(tokens, spans, tuple(range(rows)), Segments(pass_.segments.items, rows), pass_.adapters)
