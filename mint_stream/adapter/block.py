"""AdapterBlock: an adapter in the layout that kernels read, one contiguous tensor, so that placing it on a device is one copy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mint_stream.adapter.weights import AdapterWeights
from mint_stream.errors import InvalidAdapter

ALIGNMENT_BYTES = 16


@dataclass(frozen=True)
class BlockLayer:
    """Views into the block: A [r, in], and Bt [r, out], which is B transposed with the scaling folded in."""

    A: Tensor
    Bt: Tensor


@dataclass(frozen=True)
class AdapterBlock:
    """`flat` holds, layer by layer in the order of their paths, A and then Bt, each starting at a multiple of 16 bytes (gaps are zero)."""

    flat: Tensor
    layers: Mapping[str, BlockLayer]
    digest: str

    @classmethod
    def build(cls, weights: AdapterWeights, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Self:
        """The block of `weights`; scaling is folded in fp32 before the cast. Raises InvalidAdapter when `dtype` cannot hold a number."""
        shapes = {path: (layer.A.shape[0], layer.A.shape[1], layer.B.shape[0]) for path, layer in sorted(weights.layers.items())}
        flat = torch.zeros(_elements(shapes, dtype), dtype=dtype)
        views = _views(flat, shapes)
        for path, view in views.items():
            layer = weights.layers[path]
            view.A.copy_(layer.A)
            view.Bt.copy_(layer.B.t() * layer.scaling)
        if not torch.isfinite(flat).all():
            raise InvalidAdapter(f"adapter {weights.digest} has numbers too large for {dtype}")
        return cls(flat, views, weights.digest).to(device)

    def to(self, device: torch.device | str) -> Self:
        """The same block on `device`, by one copy; itself when it is there."""
        if self.flat.device == torch.device(device):
            return self
        shapes = {path: (layer.A.shape[0], layer.A.shape[1], layer.Bt.shape[1]) for path, layer in self.layers.items()}
        flat = self.flat.to(device)
        return type(self)(flat, _views(flat, shapes), self.digest)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole block."""
        return self.flat.numel() * self.flat.element_size()

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(layer.A.shape[0] for layer in self.layers.values())


def _padded(elements: int, dtype: torch.dtype) -> int:
    step = ALIGNMENT_BYTES // dtype.itemsize
    return -(-elements // step) * step


def _elements(shapes: Mapping[str, tuple[int, int, int]], dtype: torch.dtype) -> int:
    return sum(_padded(rank * width, dtype) + _padded(rank * height, dtype) for rank, width, height in shapes.values())


def _views(flat: Tensor, shapes: Mapping[str, tuple[int, int, int]]) -> dict[str, BlockLayer]:
    views: dict[str, BlockLayer] = {}
    start = 0
    for path, (rank, width, height) in shapes.items():
        middle = start + _padded(rank * width, flat.dtype)
        a = flat[start : start + rank * width].view(rank, width)
        bt = flat[middle : middle + rank * height].view(rank, height)
        views[path] = BlockLayer(a, bt)
        start = middle + _padded(rank * height, flat.dtype)
    return views
