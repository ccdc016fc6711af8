"""What the Triton kernels look up on the device: work items, where each slot's weights are, which CTA writes which outputs."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from mint_stream.kernels.expand import column_lines
from mint_stream.kernels.placing import NOTHING, bits_of, placed, table_key, weight_line
from mint_stream.kernels.segments import LoraWeights, Segments, SiteWeights
from mint_stream.kernels.worklist import Launch


def item_table(segments: Segments, launch: Launch, device: torch.device) -> Tensor:
    """int32 [items, 4]: first row, rows, slot, nothing. One copy a pass for all layers with the same list."""
    if segments.bound is not None:
        return segments.bound.items
    key = (launch.items, device)
    if key not in segments.placed:
        rows = [(item.start, item.rows, item.slot, 0) for item in launch.items]
        segments.placed[key] = placed(torch.tensor(rows, dtype=torch.int32), device)
    table: Tensor = segments.placed[key]
    return table


def weight_table(sites: Sequence[SiteWeights], device: torch.device, swapped: bool = False) -> Tensor:
    """int64 [slices, slots, 4]: where A and Bt are (Bt and A when swapped), the rank, the bits of the fp32 scaling.

    One copy for each set of adapters, kept by the first slice's weights.
    """
    kept = cast(dict[object, Tensor], sites[0].placed)
    key = table_key(device, swapped, sites)
    if key not in kept:
        rows = [[NOTHING if lora is None else weight_line(lora, swapped) for lora in weights.at] for weights in sites]
        kept[key] = placed(torch.tensor(rows, dtype=torch.int64).view(len(sites), -1, 4), device)
    return kept[key]


def column_tables(segments: Segments, ys: Sequence[Tensor], launch: Launch) -> list[Tensor]:
    """expand's `columns`, int32 [CTAs, 4] for each of its launches. One copy a pass for all layers of the same widths."""
    shape = tuple((y.shape[1], y.stride(0)) for y in ys)
    lines = column_lines(ys, launch.tile)
    keys = [("columns", shape, launch.tile.outputs, group, ys[0].device) for group in range(len(lines))]
    for key, group in zip(keys, lines, strict=True):
        if key not in segments.placed:
            segments.placed[key] = placed(torch.tensor(group, dtype=torch.int32), ys[0].device)
    return [segments.placed[key] for key in keys]


def run_tables(segments: Segments, launch: Launch, device: torch.device) -> tuple[Tensor, Tensor]:
    """gradient's items [., 4], sorted by slot and within a slot by row, and runs [., 4] of them: first item, items, slot, nothing."""
    items = sorted((item for item in launch.items if item.rows), key=lambda item: item.slot)
    keys = ("sorted", launch.items, device), ("runs", launch.items, device)
    if keys[1] not in segments.placed:
        firsts = [at for at, item in enumerate(items) if at == 0 or items[at - 1].slot != item.slot]
        runs = [(at, end - at, items[at].slot, 0) for at, end in zip(firsts, [*firsts[1:], len(items)], strict=True)]
        rows = [(item.start, item.rows, item.slot, 0) for item in items]
        for key, lines in zip(keys, (rows, runs), strict=True):
            segments.placed[key] = placed(torch.tensor(lines, dtype=torch.int32), device)
    return segments.placed[keys[0]], segments.placed[keys[1]]


def gradient_table(weights: SiteWeights, side: Literal["grad_A", "grad_Bt"], device: torch.device) -> Tensor:
    """int64 [slots, 5]: where the fp32 gradient is, the rank (0: no gradient), the bits of the scaling, row and column stride."""
    kept = cast(dict[object, Tensor], weights.placed)
    if (device, side) not in kept:
        rows = [(0, 0, 0, 0, 0) if lora is None else _gradient_row(lora, getattr(lora, side)) for lora in weights.at]
        kept[device, side] = placed(torch.tensor(rows, dtype=torch.int64), device)
    return kept[device, side]


def _gradient_row(lora: LoraWeights, grad: Tensor | None) -> tuple[int, int, int, int, int]:
    return (0, 0, 0, 0, 0) if grad is None else (grad.data_ptr(), lora.rank, bits_of(lora.scaling), grad.stride(0), grad.stride(1))
