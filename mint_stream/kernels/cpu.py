"""The torch path for CPUs: two matrix products a segment, or two batched ones a layer where segments are short and alike."""

from torch import Tensor

from mint_stream.kernels.segments import LoraWeights, Segment, Segments, SiteWeights

STACKED_ROWS = 16
"""Segments of up to this many rows go through one batched product; longer ones fill the cores by themselves."""


def add_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    """As reference.add_lora."""
    rows = _equal_rows(segments, weights)
    if rows:
        _add_stacked(x, y, segments.items[0].start, rows, weights)
        return
    for segment, lora in weights.pairs(segments):
        y[segment.start : segment.end].addmm_(x[segment.start : segment.end] @ lora.A.t(), lora.Bt, alpha=lora.scaling)


def _equal_rows(segments: Segments, weights: SiteWeights) -> int:
    """Rows of each segment when slot i is segment i and all are equally short; else 0."""
    items = segments.items
    if len(items) != len(weights.at) or len(items) < 2:
        return 0
    rows = items[0].end - items[0].start
    alike = all(item.slot == slot and item.end - item.start == rows for slot, item in enumerate(items))
    adjacent = items[-1].end - items[0].start == rows * len(items)
    return rows if alike and adjacent and 0 < rows <= STACKED_ROWS else 0


def _add_stacked(x: Tensor, y: Tensor, start: int, rows: int, weights: SiteWeights) -> None:
    a, b = weights.stack()
    end = start + rows * len(weights.at)
    h = x[start:end].view(len(weights.at), rows, -1).bmm(a)
    y[start:end].view(len(weights.at), rows, -1).baddbmm_(h, b)


def train_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    """As reference.add_lora, with dropout. A segment's products depend on its own rows alone, whoever shares the pass."""
    for segment, lora in weights.pairs(segments):
        h = _dropped(x[segment.start : segment.end], lora) @ lora.A.t()
        y[segment.start : segment.end].addmm_(h, lora.Bt, alpha=lora.scaling)


def lora_backward(x: Tensor, grad_y: Tensor, segments: Segments, weights: SiteWeights, grad_x: Tensor | None) -> None:
    """As reference.lora_backward."""
    for segment, lora in weights.pairs(segments):
        _segment_backward(x, grad_y, segment, lora, grad_x)


def _segment_backward(x: Tensor, grad_y: Tensor, segment: Segment, lora: LoraWeights, grad_x: Tensor | None) -> None:
    rows = slice(segment.start, segment.end)
    at, grad = _dropped(x[rows], lora), grad_y[rows]
    if lora.grad_Bt is not None:
        lora.grad_Bt.addmm_((at @ lora.A.t()).t(), grad, alpha=lora.scaling)
    grad_h = grad @ lora.Bt.t()
    if lora.grad_A is not None:
        lora.grad_A.addmm_(grad_h.t(), at, alpha=lora.scaling)
    if grad_x is None:
        return
    if lora.dropout is None:
        grad_x[rows].addmm_(grad_h, lora.A, alpha=lora.scaling)
    else:
        through = (grad_h @ lora.A).mul_(lora.scaling)
        grad_x[rows] += through * lora.dropout.keep(through)


def _dropped(x: Tensor, lora: LoraWeights) -> Tensor:
    return x if lora.dropout is None else x * lora.dropout.keep(x)
