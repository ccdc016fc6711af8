"""How many rows a pass needs so that each row's numbers are the same bits whatever else is in it.

Libraries choose how to multiply by the number of rows, and by a row's place among them, and sum in another order when they choose
otherwise. So the base's own products, forward and backward, are tried at start-up: passes of at least `least` and at most `most` rows give
the same bits; where no such range is found, every pass that is shared gets one number of rows at which all places are alike; where there is
none, nothing is shared. A micro-batch larger than `most` goes alone, which is exact in any case. Two limits remain: elementwise kernels
round the last few of an array's numbers differently unless layer widths are multiples of 32, and experts see other shapes in company.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mint_stream.model.forward import PackedModel
from mint_stream.model.quantised import is_plain

log = logging.getLogger(__name__)

FIXED_ROWS = (512, 480, 384, 192, 96, 48)
"""Rows of every shared pass where products of other sizes differ: the largest keep the cores busy, the small ones are for small budgets."""
PLACES = (1, 7, 100)
"""How far rows are moved to see whether their places matter."""
FLOORS = (4, 64, 128, 200, 256)
"""Numbers of rows that may be the smallest."""
TRIED = (
    4,
    5,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    33,
    48,
    63,
    64,
    65,
    79,
    96,
    127,
    128,
    129,
    160,
    187,
    192,
    200,
    255,
    256,
    257,
    320,
    384,
    397,
    511,
    512,
)
Multiply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """Of a pass that several jobs share."""

    least: int
    most: int


ALONE = Rows(0, 0)
"""No pass is shared."""


def exact_rows(packed: PackedModel, budget: int) -> Rows:
    """For this base on this machine; `budget` is the most that a pass may have. How int8 bases multiply is not tried."""
    products = _products(packed)
    return ALONE if products is None else rows_for(products, budget)


def rows_for(products: Sequence[tuple[Multiply, Tensor]], budget: int) -> Rows:
    """The range in which these products, each with an input to try it on, give a row the same bits."""
    floor = _floor(products, [count for count in TRIED if count <= budget])
    if floor is not None and floor <= budget:
        return Rows(floor, budget)
    fixed = next((count for count in FIXED_ROWS if count <= budget and _placeless(products, count)), None)
    if fixed is None:
        log.info("this base's products change with their rows' places: every job has passes of its own")
        return ALONE
    log.info("this base's products change with their number of rows: shared passes have %d of them", fixed)
    return Rows(fixed, fixed)


def _products(packed: PackedModel) -> list[tuple[Multiply, Tensor]] | None:
    """One product of each shape, forward and backward, with an input to try it on. None for weights that are no plain numbers."""
    shapes: dict[tuple[int, ...], Tensor] = {}
    for path, module in packed.model.named_modules():
        if path in packed.sites.paths and isinstance(weight := getattr(module, "weight", None), Tensor):
            shapes.setdefault(tuple(weight.shape), weight.detach())
    if not all(map(is_plain, shapes.values())):
        return None
    return [pair for weight in shapes.values() for pair in (_forward(weight), _backward(weight))]


def _forward(weight: Tensor) -> tuple[Multiply, Tensor]:
    return (lambda x: functional.linear(x, weight)), _drawn(weight.shape[1], weight)


def _backward(weight: Tensor) -> tuple[Multiply, Tensor]:
    return (lambda x: x @ weight), _drawn(weight.shape[0], weight)


def _drawn(width: int, like: Tensor) -> Tensor:
    return torch.randn(max(TRIED), width, generator=torch.Generator().manual_seed(0)).to(like)


def _floor(products: Sequence[tuple[Multiply, Tensor]], counts: Sequence[int]) -> int | None:
    """The smallest from which on rows have the bits they have among the most."""
    if not counts or not _placeless(products, counts[-1]):
        return None
    wrong = max((count for multiply, x in products for count in _otherwise(multiply, x, counts)), default=0)
    return next((floor for floor in FLOORS if floor > wrong), None)


def _placeless(products: Sequence[tuple[Multiply, Tensor]], count: int) -> bool:
    """Whether a row's bits are the same wherever it is among `count`."""
    return all(_moved_alike(multiply, x[:count]) for multiply, x in products)


def _moved_alike(multiply: Multiply, x: Tensor) -> bool:
    whole = multiply(x)
    return all(torch.equal(multiply(x.roll(far, 0)).roll(-far, 0), whole) for far in PLACES)


def _otherwise(multiply: Multiply, x: Tensor, counts: Sequence[int]) -> list[int]:
    """The counts at which a row has other bits than among the most."""
    whole = multiply(x[: counts[-1]])
    return [count for count in counts if not torch.equal(multiply(x[:count]), whole[:count])]
