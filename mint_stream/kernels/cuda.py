"""The Triton path for CUDA: a shrink and an expand for all adapters of a layer. Imported where triton and a CUDA device are present."""

import struct

import torch
from torch import Tensor

from mint_stream.kernels.expand import expand
from mint_stream.kernels.segments import LoraWeights, Segments, SiteWeights
from mint_stream.kernels.shrink import shrink
from mint_stream.kernels.tiles import ALIGNMENT_BYTES, DTYPES, RANKS
from mint_stream.kernels.worklist import Launch, plan


def takes(x: Tensor, y: Tensor, weights: SiteWeights) -> bool:
    """Whether these kernels can read the layer: rows and weights contiguous, 16-byte aligned, of one dtype, ranks up to 128.

    An AdapterBlock on the base's device and dtype always can; training's transposed masters go through torch.
    """
    used = [lora for lora in weights.at if lora is not None]
    return _readable(x, x) and _readable(y, x) and all(_readable(t, x) for lora in used for t in (lora.A, lora.Bt)) and _ranked(used)


def _readable(tensor: Tensor, x: Tensor) -> bool:
    same = tensor.dtype == x.dtype and tensor.device == x.device and x.dtype in DTYPES
    wide = tensor.shape[1] * tensor.element_size() % ALIGNMENT_BYTES == 0 and tensor.data_ptr() % ALIGNMENT_BYTES == 0
    return same and wide and tensor.is_contiguous()


def _ranked(used: list[LoraWeights]) -> bool:
    return all(lora.rank <= RANKS[-1] for lora in used)


def add_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights, batch_invariant: bool = False) -> None:
    """As reference.add_lora. The same segments give the same bits; with `batch_invariant`, each row's bits are its own adapter's matter."""
    if not takes(x, y, weights):
        raise ValueError("the CUDA kernels need contiguous, 16-byte aligned x, y, A and Bt of one dtype, and ranks up to 128")
    for lora in weights.at:
        if lora is not None and (lora.A.shape[1] != x.shape[1] or lora.Bt.shape != (lora.rank, y.shape[1])):
            raise ValueError(f"x {list(x.shape)} and y {list(y.shape)} do not fit A {list(lora.A.shape)} and Bt {list(lora.Bt.shape)}")
    launches = plan(segments, weights.ranks, x.shape[1], x.dtype, batch_invariant)
    with torch.cuda.device_of(x):
        for launch in launches:
            items = _items(segments, launch, x.device)
            h = torch.empty(launch.planes, x.shape[0], launch.tile.rank, dtype=torch.float32, device=x.device)
            shrink(x, h, items, _table(weights, x.device), launch)
            expand(h, y, items, _table(weights, x.device), launch)


def _items(segments: Segments, launch: Launch, device: torch.device) -> Tensor:
    """int32 [items, 4]: first row, rows, slot, nothing. One copy a pass for all layers with the same list."""
    key = (launch.items, device)
    if key not in segments.placed:
        rows = [(item.start, item.rows, item.slot, 0) for item in launch.items]
        segments.placed[key] = _placed(torch.tensor(rows, dtype=torch.int32), device)
    return segments.placed[key]


def _table(weights: SiteWeights, device: torch.device) -> Tensor:
    """int64 [slots, 4]: where A and Bt are, the rank, the bits of the fp32 scaling. One copy a layer for each set of adapters."""
    if device not in weights.placed:
        rows = [(0, 0, 0, 0) if lora is None else _row(lora) for lora in weights.at]
        weights.placed[device] = _placed(torch.tensor(rows, dtype=torch.int64), device)
    return weights.placed[device]


def _row(lora: LoraWeights) -> tuple[int, int, int, int]:
    (bits,) = struct.unpack("<i", struct.pack("<f", lora.scaling))
    return lora.A.data_ptr(), lora.Bt.data_ptr(), lora.rank, bits


def _placed(table: Tensor, device: torch.device) -> Tensor:
    """On `device`, by a copy that the host does not wait for."""
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)
