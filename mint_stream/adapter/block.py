"""AdapterBlock: an adapter in the layout that kernels read, one contiguous tensor, so that placing it on a device is one copy."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from mint_stream.adapter.parameters import by_expert
from mint_stream.adapter.targets import LayerShape
from mint_stream.adapter.tensors import all_finite
from mint_stream.adapter.weights import AdapterWeights
from mint_stream.errors import InvalidAdapter

ALIGNMENT_BYTES = 16
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that read the same x in the models we know: with their As one behind the other, one product of x serves them all."""


@dataclass(frozen=True)
class BlockForm:
    """How blocks are held on the host: in which numbers, and whether in page-locked memory, which a GPU copies from without a detour."""

    dtype: torch.dtype = torch.float32
    pinned: bool = False


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
    layers: "BlockLayers"
    digest: str

    @classmethod
    def build(
        cls, weights: AdapterWeights, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", pin: bool = False
    ) -> Self:
        """The block of `weights`; scaling is folded in fp32 before the cast. Raises InvalidAdapter when `dtype` cannot hold a number.

        `pin`: in page-locked memory, which a GPU copies from without a detour."""
        shapes = {path: (layer.A.shape[0], layer.A.shape[1], layer.B.shape[0], layer.experts) for path, layer in weights.layers.items()}
        flat = _scaled(weights, shapes, dtype).to(dtype)
        flat = flat.pin_memory() if pin else flat
        if not all_finite(flat):
            raise InvalidAdapter(f"adapter {weights.digest} has numbers too large for {dtype}")
        return cls.over(flat, shapes, weights.digest).to(device)

    @classmethod
    def over(cls, flat: Tensor, shapes: Mapping[str, "BlockShape"], digest: str) -> Self:
        """The block that `flat`, of `elements_of(shapes)` numbers, holds or is about to."""
        return cls(flat, BlockLayers(flat, shapes), digest)

    def to(self, device: torch.device | str) -> Self:
        """The same block on `device`, by one copy; itself when it is there."""
        return self if self.flat.device == torch.device(device) else self.over(self.flat.to(device), self.shapes, self.digest)

    def into(self, flat: Tensor) -> Self:
        """The same block in `flat`, memory of its size and dtype, by one copy that may still be going on when this returns."""
        flat.copy_(self.flat, non_blocking=True)
        return self.over(flat, self.shapes, self.digest)

    @property
    def shapes(self) -> Mapping[str, "BlockShape"]:
        """Of each layer, without looking at a number."""
        return self.layers.shapes

    @cached_property
    def places(self) -> Mapping[str, tuple["Place", "Place"]]:
        """Where in `flat` the A and the Bt of each layer are."""
        return self.layers.places

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
        return max(rows // max(1, experts) for rows, _, _, experts in self.shapes.values())


class Place(NamedTuple):
    """A matrix in the block: rank rows of `width` from `offset` on."""

    offset: int
    rank: int
    width: int


BlockShape = tuple[int, int, int, int]
"""(rows of A, in, out, experts) of a layer."""


class BlockLayers(Mapping[str, BlockLayer]):
    """The layers of a block by path, each made into views when it is first asked for: there may be tens of thousands."""

    def __init__(self, flat: Tensor, shapes: Mapping[str, BlockShape]) -> None:
        self.shapes = shapes
        self._flat = flat
        self._made: dict[str, BlockLayer] = {}

    @cached_property
    def places(self) -> Mapping[str, tuple[Place, Place]]:
        """Where A and Bt of each layer are, in the order of their places."""
        return _places(self.shapes, self._flat.dtype)

    def __getitem__(self, path: str) -> BlockLayer:
        if path not in self._made:
            a, bt = self.places[path]
            self._made[path] = BlockLayer(_matrix(self._flat, a), _matrix(self._flat, bt), self.shapes[path][3])
        return self._made[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.shapes)


def _scaled(weights: AdapterWeights, shapes: Mapping[str, BlockShape], dtype: torch.dtype) -> Tensor:
    """The numbers of a block in fp32, at the places they have in one of `dtype`; few calls however many layers."""
    flat = torch.zeros(elements_of(shapes, dtype))
    places = _places(shapes, dtype)
    layers = [weights.layers[path] for path in places]
    torch._foreach_copy_([_matrix(flat, a) for a, _ in places.values()], [layer.A for layer in layers])
    bts = [_matrix(flat, bt) for _, bt in places.values()]
    torch._foreach_copy_(bts, [by_expert(layer.B, layer.experts) if layer.experts > 1 else layer.B.t() for layer in layers])
    torch._foreach_mul_(bts, [layer.scaling for layer in layers])
    return flat


def _matrix(flat: Tensor, at: Place) -> Tensor:
    return flat.as_strided((at.rank, at.width), (at.width, 1), flat.storage_offset() + at.offset)


def _padded(elements: int, dtype: torch.dtype) -> int:
    step = ALIGNMENT_BYTES // dtype.itemsize
    return -(-elements // step) * step


def elements_of(shapes: Mapping[str, BlockShape], dtype: torch.dtype) -> int:
    """Numbers in a block of such layers, gaps among them."""
    return sum(_padded(rank * width, dtype) + _padded(rank * height, dtype) for rank, width, height, _ in shapes.values())


def _places(shapes: Mapping[str, BlockShape], dtype: torch.dtype) -> dict[str, tuple[Place, Place]]:
    places: dict[str, tuple[Place, Place]] = {}
    start = 0
    for paths in _neighbours(shapes):
        parts: dict[str, list[Place]] = {path: [] for path in paths}
        for side in (1, 2):
            for path in paths:
                rank, width = shapes[path][0], shapes[path][side]
                parts[path].append(Place(start, rank, width))
                start += _padded(rank * width, dtype)
        places |= {path: (a, bt) for path, (a, bt) in parts.items()}
    return places


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
