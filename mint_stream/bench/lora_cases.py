"""What `bench kernels` measures: LoRA layers of a model by shape, and whose rows they see."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from mint_stream.kernels import LoraWeights, Segments, SiteWeights

Popularity = Literal["identical", "uniform", "zipf", "distinct"]

LAYER_8B = ((4096, (4096, 1024, 1024)), (4096, (4096,)), (4096, (14336, 14336)), (14336, (4096,)))
"""q/k/v, o, gate/up, down of an 8B model: inputs and the outputs of all sites that share them."""
SHAPES = ((2048, 2048), (4096, 1024), (4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192))
RANKS = (1, 5, 16, 32, 64, 128)
ROWS = (1, 16, 64, 512, 8192)
SHARED = (("identical", 1), ("uniform", 8), ("uniform", 32), ("uniform", 256), ("zipf", 32), ("zipf", 256), ("distinct", 256))


@dataclass(frozen=True)
class Case:
    """`rows` rows of `adapters` adapters of one rank, through all sites that share an input."""

    inputs: int
    outputs: tuple[int, ...]
    rank: int
    rows: int
    adapters: int
    popularity: Popularity

    def slots(self) -> list[int]:
        """Each row's adapter."""
        return popular(self.popularity, self.rows, self.adapters)

    def ideal_bytes(self, item_bytes: int) -> int:
        """What has to move at the least: the adapters asked for, x, h and y, each once."""
        used = len(set(self.slots()))
        weights = used * self.rank * sum(self.inputs + outputs for outputs in self.outputs)
        rows = self.rows * (self.inputs + sum(self.outputs) + self.rank * len(self.outputs))
        return (weights + rows) * item_bytes


def popular(kind: Popularity, rows: int, adapters: int) -> list[int]:
    """Whose row each of `rows` rows is when adapters are asked for identically, uniformly, by Zipf's law, or all by different rows."""
    if kind == "identical":
        return [0] * rows
    if kind == "distinct":
        return list(range(rows))
    shares = [1.0 / (place + 1) if kind == "zipf" else 1.0 for place in range(adapters)]
    bounds = torch.tensor(shares).cumsum(0) / sum(shares) * rows
    return sorted(int(torch.searchsorted(bounds, row + 0.5)) for row in range(rows))


def layer(rank: int, adapters: int) -> list[Case]:
    """A decode step of as many rows as adapters through one layer of an 8B model."""
    return [Case(inputs, outputs, rank, adapters, adapters, "distinct") for inputs, outputs in LAYER_8B]


def sweep() -> Iterator[Case]:
    """Every combination that TARGETS names and that exists: no more adapters than rows, different rows up to 256."""
    for (inputs, outputs), rank, rows, (kind, adapters) in product(SHAPES, RANKS, ROWS, SHARED):
        if kind == "distinct" and rows <= adapters:
            yield Case(inputs, (outputs,), rank, rows, rows, "distinct")
        elif kind != "distinct" and adapters <= rows:
            yield Case(
                inputs, (outputs,), rank, rows, adapters, "identical" if kind == "identical" else "zipf" if kind == "zipf" else "uniform"
            )


@dataclass(frozen=True)
class Tensors:
    """A case's numbers: x, and for each site y and the adapters' weights."""

    x: Tensor
    slices: list[tuple[Tensor, SiteWeights]]
    segments: Segments

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> "Tensors":
        """Random ones, of about 1 in size."""
        generator = torch.Generator(device).manual_seed(seed)

        def drawn(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator, device=device, dtype=torch.float32).to(dtype)

        def site(outputs: int) -> SiteWeights:
            down, up = case.inputs**-0.5, case.rank**-0.5
            return SiteWeights(
                [LoraWeights(drawn(case.rank, case.inputs) * down, drawn(case.rank, outputs) * up) for _ in range(case.adapters)]
            )

        slices = [(drawn(case.rows, outputs), site(outputs)) for outputs in case.outputs]
        return cls(drawn(case.rows, case.inputs), slices, Segments.of_slots(case.slots()))
