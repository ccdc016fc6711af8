"""Decode steps as graphs: captured at the worker's start for every shape, replayed whenever a step is decode rows alone and fits one.

A graph does on the device, by itself, what Python would ask for kernel by kernel. What differs from step to step is in tables.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mint_stream.engine.decode_shapes import Shape, Shapes
from mint_stream.engine.decode_tables import DecodeTables, filled_up
from mint_stream.engine.graphs import Graphs, Work
from mint_stream.engine.paged_cache import PagedCache
from mint_stream.kernels import Segments
from mint_stream.kernels.bound_attention import planes_of
from mint_stream.kernels.tiles import ROWS
from mint_stream.kernels.worklist import cut
from mint_stream.model.passes import NO_ADAPTERS, Pass

Forward = Callable[[Pass], Tensor]
"""Logits [selected rows, vocabulary] of a pass that was placed in the cache."""


class DecodeGraphs:
    """One graph for each shape. Law: what a replay gives is what the same step gives without a graph."""

    def __init__(self, forward: Forward, cache: PagedCache, tables: DecodeTables, shapes: Shapes, graphs: Graphs) -> None:
        self._forward, self._cache, self._tables, self._shapes, self._graphs = forward, cache, tables, shapes, graphs
        self._replays: dict[Shape, Work] = {}
        self._templates: list[Pass] = []
        """A graph goes on reading the tables that its pass placed on the device, and a replay keeps nothing alive."""
        self._logits: Tensor | None = None
        self.replayed = 0
        """Steps so far that were a replay."""

    def __len__(self) -> int:
        return len(self._replays)

    def capture(self) -> None:
        """Record every shape, each over rows of nobody's."""
        for shape in self._shapes:
            self._put(shape, filled_up(Pass((), (), (), Segments((), 0), NO_ADAPTERS), shape.rows, self._cache.nobodys_slot))
            self._replays[shape] = self._graphs.captured(self._work(shape))

    def logits(self, pass_: Pass) -> Tensor | None:
        """Compute a pass: its logits [rows, vocabulary], to be used before the next replay. None: it fits no graph, nothing was done."""
        shape = self.shape_of(pass_)
        if shape is None or self._logits is None:
            return None
        self._put(shape, filled_up(pass_, shape.rows, self._cache.nobodys_slot))
        self._replays[shape]()
        self.replayed += 1
        return self._logits[: len(pass_.tokens)]

    def shape_of(self, pass_: Pass) -> Shape | None:
        """The graph for a pass; None for what is more than one row of each sequence, or has adapters that no graph looks up."""
        if any(span.rows != 1 for span in pass_.spans) or pass_.selected != tuple(range(len(pass_.tokens))):
            return None
        items = len(cut(pass_.segments, ROWS[0]))
        rank = self._tables.rank(pass_.adapters) if items else 0
        if rank is None:
            return None
        longest = max((span.length for span in pass_.spans), default=0)
        return self._shapes.holding(len(pass_.tokens), items, rank, planes_of(longest))

    def _put(self, shape: Shape, pass_: Pass) -> None:
        self._cache.place(pass_, into=self._tables.places(shape))
        self._tables.fill(shape, pass_)

    def _work(self, shape: Shape) -> Work:
        template = self._tables.template(shape)
        self._templates.append(template)

        def work() -> None:
            logits = self._forward(template)
            if self._logits is None:
                self._logits = torch.zeros(self._shapes.most_rows, logits.shape[1], dtype=logits.dtype, device=logits.device)
            self._logits[: shape.rows].copy_(logits)

        return work
