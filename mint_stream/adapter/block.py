"""AdapterBlock: an adapter in the layout that kernels read, one contiguous tensor, so that placing it on a device is one copy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from mint_stream.adapter.parameters import by_expert
from mint_stream.adapter.targets import LayerShape
from mint_stream.adapter.weights import AdapterWeights
from mint_stream.errors import InvalidAdapter

ALIGNMENT_BYTES = 16
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that read the same x in the models we know: with their As one behind the other, one product of x serves them all."""


@dataclass(frozen=True)
class BlockLayer:
    """Views into the block: A [r, in], and Bt [r, out], which is B transposed with the scaling folded in.

    Of a bare parameter's `experts` [experts · r, ...] both, an expert after the other.
    """

    A: Tensor
    Bt: Tensor
    experts: int = 0
    """As AdapterLayer.experts."""

    @property
    def shape(self) -> LayerShape:
        """As AdapterLayer.shape."""
        width, height = self.A.shape[1], self.Bt.shape[1]
        return (width, height, self.experts) if self.experts else (width, height)


@dataclass(frozen=True)
class AdapterBlock:
    """`flat` holds A and then Bt of each layer, in the order of their paths, each starting at a multiple of 16 bytes (gaps are zero).

    Layers of SHARED_INPUTS stand together: first their As, then their Bts."""

    flat: Tensor
    layers: Mapping[str, BlockLayer]
    digest: str

    @classmethod
    def build(cls, weights: AdapterWeights, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Self:
        """The block of `weights`; scaling is folded in fp32 before the cast. Raises InvalidAdapter when `dtype` cannot hold a number."""
        shapes = {
            path: (layer.A.shape[0], layer.A.shape[1], layer.B.shape[0], layer.experts) for path, layer in sorted(weights.layers.items())
        }
        flat = torch.zeros(_elements(shapes, dtype), dtype=dtype)
        views = _views(flat, shapes)
        for path, view in views.items():
            layer = weights.layers[path]
            view.A.copy_(layer.A)
            view.Bt.copy_(by_expert(layer.B, max(1, layer.experts)) * layer.scaling)
        if not torch.isfinite(flat).all():
            raise InvalidAdapter(f"adapter {weights.digest} has numbers too large for {dtype}")
        return cls(flat, views, weights.digest).to(device)

    def to(self, device: torch.device | str) -> Self:
        """The same block on `device`, by one copy; itself when it is there."""
        if self.flat.device == torch.device(device):
            return self
        shapes = {path: (layer.A.shape[0], layer.A.shape[1], layer.Bt.shape[1], layer.experts) for path, layer in self.layers.items()}
        flat = self.flat.to(device)
        return type(self)(flat, _views(flat, shapes), self.digest)

    @cached_property
    def places(self) -> Mapping[str, tuple["Place", "Place"]]:
        """Where in `flat` the A and the Bt of each layer are."""
        start = int(self.flat.storage_offset())
        return {path: (_place(layer.A, start), _place(layer.Bt, start)) for path, layer in self.layers.items()}

    @cached_property
    def layout(self) -> str:
        """Dtype and places as text: blocks of equal layout can stand side by side and be read alike."""
        return f"{self.flat.dtype} {self.flat.numel()} {[(path, *map(tuple, places)) for path, places in self.places.items()]}"

    @property
    def nbytes(self) -> int:
        """Bytes of the whole block."""
        return self.flat.numel() * self.flat.element_size()

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(layer.A.shape[0] // max(1, layer.experts) for layer in self.layers.values())


class Place(NamedTuple):
    """A matrix in the block: rank rows of `width` from `offset` on."""

    offset: int
    rank: int
    width: int


def _place(matrix: Tensor, start: int) -> Place:
    return Place(int(matrix.storage_offset()) - start, *matrix.shape)


def _padded(elements: int, dtype: torch.dtype) -> int:
    step = ALIGNMENT_BYTES // dtype.itemsize
    return -(-elements // step) * step


def _elements(shapes: Mapping[str, tuple[int, int, int, int]], dtype: torch.dtype) -> int:
    return sum(_padded(rank * width, dtype) + _padded(rank * height, dtype) for rank, width, height, _ in shapes.values())


def _views(flat: Tensor, shapes: Mapping[str, tuple[int, int, int, int]]) -> dict[str, BlockLayer]:
    views: dict[str, BlockLayer] = {}
    start = 0
    for paths in _neighbours(shapes):
        parts: dict[str, list[Tensor]] = {path: [] for path in paths}
        for side in (1, 2):
            for path in paths:
                rank, width = shapes[path][0], shapes[path][side]
                parts[path].append(flat[start : start + rank * width].view(rank, width))
                start += _padded(rank * width, flat.dtype)
        views |= {path: BlockLayer(parts[path][0], parts[path][1], shapes[path][3]) for path in paths}
    return views


def _neighbours(paths: Iterable[str]) -> list[list[str]]:
    """The layers in the order of their place in the block, those together whose As stand together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path in sorted(paths):
        parent, _, name = path.rpartition(".")
        first = next((names[0] for names in SHARED_INPUTS if name in names), name)
        groups.setdefault((parent, first), []).append(path)
    return [sorted(group, key=_place_among_siblings) for group in groups.values()]


def _place_among_siblings(path: str) -> int:
    name = path.rpartition(".")[2]
    return next((names.index(name) for names in SHARED_INPUTS if name in names), 0)
