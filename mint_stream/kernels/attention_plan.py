"""Which CTA attends for which rows: prefill chunks in tall tiles, decode rows in low ones whose keys are split among several CTAs."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mint_stream.kernels.placing import placed
from mint_stream.kernels.worklist import bucket

LOW, TALL = 16, 64
"""Rows times query heads of a group that one CTA attends for."""
PLANE_TOKENS = 512
"""Keys of one CTA of a decode row. Planes begin at multiples of it, so a row's split is the matter of its own position alone."""
WIDEST = 256
"""Numbers of a head; half as many in fp32, whose products take thrice the registers."""
EVERYTHING = 1 << 30
"""A window that hides nothing."""


@dataclass(frozen=True)
class PagedSpan:
    """Rows start ≤ row < end of a pass are the tokens at `position`, `position + 1`, ... of the sequence in that line of the table."""

    start: int
    end: int
    position: int
    sequence: int


@dataclass(frozen=True)
class AttentionItem:
    """Up to a tile's rows of one span over the keys begin ≤ token < end. `rows` 0: padding."""

    row: int
    rows: int
    sequence: int
    position: int
    begin: int
    end: int
    plane: int = 0
    place: int = 0
    """Where the first row's partial sums are."""


PADDING = AttentionItem(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class AttentionPlan:
    """`tall` items write their rows' answers, `low` ones write partial sums that are then combined: `rows` are (row, planes) of those."""

    tall: tuple[AttentionItem, ...]
    low: tuple[AttentionItem, ...]
    rows: tuple[tuple[int, int], ...]

    @property
    def planes(self) -> int:
        """The most that any row has."""
        return max((planes for _, planes in self.rows), default=0)


@dataclass(frozen=True)
class AttentionWork:
    """A plan on a device: int32 [., 8] of its tall and of its low items, [., 2] of its rows, and the most planes that a row has."""

    tall: Tensor
    low: Tensor
    rows: Tensor
    planes: int


@dataclass(frozen=True)
class PagedSpans:
    """The spans of a pass of `rows` rows: ascending, not overlapping."""

    items: tuple[PagedSpan, ...]
    rows: int
    kept: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)
    """Plans and their tables on devices, made once a pass for all layers that ask alike."""

    def work(self, group: int, window: int | None, tall_height: int, device: torch.device) -> AttentionWork:
        """attention_plan of these spans, on a device."""
        key = (group, window, tall_height, device)
        if key not in self.kept:
            plan = attention_plan(self.items, group, window, tall_height)
            rows = torch.tensor(plan.rows, dtype=torch.int32).view(-1, 2)
            tall, low, rows = (placed(lines, device) for lines in (as_lines(plan.tall), as_lines(plan.low), rows))
            self.kept[key] = AttentionWork(tall, low, rows, plan.planes)
        work: AttentionWork = self.kept[key]
        return work

    def own_rows(self, device: torch.device) -> Tensor:
        """The table int32 [sequences, longest span] of whole sequences whose pages are the pass's single rows."""
        if ("own rows", device) not in self.kept:
            longest = max((span.end - span.start for span in self.items), default=0)
            lines = [[0] * longest for _ in range(1 + max((span.sequence for span in self.items), default=0))]
            for span in self.items:
                lines[span.sequence][: span.end - span.start] = range(span.start, span.end)
            self.kept["own rows", device] = placed(torch.tensor(lines, dtype=torch.int32).view(len(lines), longest), device)
        table: Tensor = self.kept["own rows", device]
        return table


def as_lines(items: Sequence[AttentionItem]) -> Tensor:
    """int32 [items, 8]"""
    return torch.tensor([astuple(item) for item in items], dtype=torch.int32).view(-1, 8)


@dataclass(frozen=True)
class AttentionTile:
    """One variant of paged_attention."""

    height: int
    tokens: int
    """Keys at a time."""
    warps: int
    stages: int


def attention_tile(low: bool, group: int, width: int, dtype: torch.dtype) -> AttentionTile:
    """The variant for `group` query heads a key head, keys and values of up to `width` numbers."""
    wide, many = dtype.itemsize == 4, power(width) > 64
    height = max(LOW if low or (wide and many) else TALL, power(group))
    tokens = 32 if wide or power(width) > 128 + 128 * low else 64
    return AttentionTile(height, tokens, 8 if many and not low and not wide else 4, 1 if wide else 3 if low else 2)


def attention_plan(spans: Sequence[PagedSpan], group: int, window: int | None, tall_height: int = TALL) -> AttentionPlan:
    """The work of one pass, for tiles as attention_tile makes them.

    Law: every row of every span is in the items of one kind, and its visible keys are in exactly one of them each; a row's items depend on
    its own span alone; rows of a span that fits a low tile are low.
    """
    tall: list[AttentionItem] = []
    low: list[AttentionItem] = []
    rows: list[tuple[int, int]] = []
    for span in spans:
        count = span.end - span.start
        if count * group > max(LOW, power(group)):
            tall.extend(_tall(span, max(tall_height, power(group)) // group, window))
        elif count:
            planes = _planes(span, window)
            low.extend(
                AttentionItem(span.start, count, span.sequence, span.position, begin, end, plane, len(rows))
                for plane, (begin, end) in enumerate(planes)
            )
            rows.extend((row, len(planes)) for row in range(span.start, span.end))
    return AttentionPlan(_padded(tall), _padded(low), tuple(rows))


def _tall(span: PagedSpan, height: int, window: int | None) -> list[AttentionItem]:
    items = []
    for row in range(span.start, span.end, height):
        count, position = min(height, span.end - row), span.position + row - span.start
        items.append(AttentionItem(row, count, span.sequence, position, _first(position, window), position + count))
    return items


def _planes(span: PagedSpan, window: int | None) -> list[tuple[int, int]]:
    begin, end = _first(span.position, window), span.position + span.end - span.start
    cuts = [begin, *range((begin // PLANE_TOKENS + 1) * PLANE_TOKENS, end, PLANE_TOKENS), end]
    return list(pairwise(cuts))


def _first(position: int, window: int | None) -> int:
    """The first key that the row at `position` sees, down to a multiple of every tile's tokens."""
    return 0 if window is None else max(0, position - window + 1) // 64 * 64


def _padded(items: list[AttentionItem]) -> tuple[AttentionItem, ...]:
    return tuple(items) + (PADDING,) * (bucket(len(items)) - len(items) if items else 0)


def power(size: int) -> int:
    """The smallest power of two that holds `size`."""
    return 1 << (size - 1).bit_length()
