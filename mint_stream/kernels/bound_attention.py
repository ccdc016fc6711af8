"""Attention's work list for decode steps of which the shape alone is known, at the same place for ever, as a graph reads it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mint_stream.kernels.attention_plan import PADDING, PLANE_TOKENS, AttentionWork, PagedSpan, PagedSpans, as_lines, attention_plan
from mint_stream.kernels.placing import placed


class BoundAttention:
    """Tables for up to `most_rows` decode rows with up to `most_planes` planes each: a pair for each window that a layer asks for."""

    def __init__(self, most_rows: int, most_planes: int, device: torch.device) -> None:
        self._most_rows, self._most_planes, self._device = most_rows, most_planes, device
        self._tables: dict[int | None, tuple[Tensor, Tensor]] = {}
        self._spans: tuple[PagedSpan, ...] = ()
        self._planes = most_planes

    def fill(self, spans: Sequence[PagedSpan], planes: int) -> None:
        """From now on these spans, of one row each and of up to `planes` planes, are attended for."""
        self._spans, self._planes = tuple(spans), planes
        for window in self._tables:
            self._write(window)

    def spans(self, rows: int, planes: int) -> "BoundSpans":
        """What a pass of so many rows asks for its work."""
        return BoundSpans((), rows, planes=planes, tables=self)

    def work(self, rows: int, planes: int, window: int | None) -> AttentionWork:
        """Views of the tables for this window."""
        if window not in self._tables:
            lines = self._most_rows * planes_within(self._most_planes, window)
            shapes = ((lines, 8), (self._most_rows, 2))
            items, of_rows = (torch.zeros(shape, dtype=torch.int32, device=self._device) for shape in shapes)
            self._tables[window] = items, of_rows
            self._write(window)
        items, of_rows = self._tables[window]
        within = planes_within(planes, window)
        return AttentionWork(items[:0], items[: rows * within], of_rows[:rows], within)

    def _write(self, window: int | None) -> None:
        """`rows` lines of what is known, then padding up to what the shape has."""
        plan = attention_plan(self._spans, 1, window)
        items = [item for item in plan.low if item.rows]
        items += [PADDING] * (len(self._spans) * planes_within(self._planes, window) - len(items))
        rows = torch.tensor(plan.rows, dtype=torch.int32).view(-1, 2)
        for table, lines in zip(self._tables[window], (as_lines(items), rows), strict=True):
            table[: len(lines)].copy_(placed(lines, self._device), non_blocking=True)


class BoundSpans(PagedSpans):
    """The spans of a pass whose positions are in tables."""

    def __init__(self, items: tuple[PagedSpan, ...], rows: int, planes: int, tables: BoundAttention) -> None:
        super().__init__(items, rows)
        object.__setattr__(self, "_planes", planes)
        object.__setattr__(self, "_tables", tables)

    def work(self, group: int, window: int | None, tall_height: int, device: torch.device) -> AttentionWork:
        """A row is low whatever the group."""
        found: AttentionWork = self._tables.work(self.rows, self._planes, window)  # type: ignore[attr-defined]
        return found


def planes_within(planes: int, window: int | None) -> int:
    """How many of a row's planes a window can touch; keys are counted from a multiple of 64 on."""
    return planes if window is None else min(planes, (window + 63) // PLANE_TOKENS + 2)


def planes_of(tokens: int) -> int:
    """Of a row that sees so many tokens."""
    return -(-tokens // PLANE_TOKENS)
