"""Passes are as large as this machine needs to give a row the same bits in any company."""

import torch
from torch import Tensor

from mint_stream.model.forward import PackedModel
from mint_stream.model.tiny import linear_paths, tiny_model
from mint_stream.trainer.exact_rows import ALONE, FIXED_ROWS, FLOORS, Rows, exact_rows, rows_for

X = torch.rand(512, 3, generator=torch.Generator().manual_seed(0))


def otherwise_below(limit: int) -> tuple[object, Tensor]:
    """A product whose library sums in another order for fewer than `limit` rows."""
    return (lambda x: x.sum(1) if len(x) >= limit else (x * 1.0001).sum(1)), X


def test_where_any_number_of_rows_is_right_passes_are_not_filled() -> None:
    assert rows_for([otherwise_below(0)], 2048) == rows_for([], 2048) == Rows(FLOORS[0], 2048)


def test_passes_are_filled_up_to_where_the_last_product_has_its_bits() -> None:
    assert rows_for([otherwise_below(0), otherwise_below(130)], 2048) == Rows(200, 2048)
    assert rows_for([otherwise_below(60)], 100) == Rows(64, 100)


def test_where_no_range_is_right_every_shared_pass_has_one_number_of_rows() -> None:
    by_parity = (lambda x: x.sum(1) * (1 + len(x) % 2)), X
    assert rows_for([by_parity], 2048) == Rows(FIXED_ROWS[0], FIXED_ROWS[0])
    assert rows_for([by_parity], 100) == Rows(96, 96)


def last_otherwise(tile: int) -> tuple[object, Tensor]:
    """A product whose library cuts rows into tiles and sums those that are left over in another order."""
    return (lambda x: torch.cat([x[: len(x) // tile * tile].sum(1), (x[len(x) // tile * tile :] * 1.0001).sum(1)])), X


def test_where_places_matter_passes_have_a_number_of_rows_at_which_they_do_not_or_are_not_shared() -> None:
    assert rows_for([last_otherwise(6)], 2048) == Rows(480, 480)
    assert rows_for([last_otherwise(7)], 2048) == ALONE


def test_a_bases_own_products_are_tried_and_its_rows_are_the_same_bits_from_there_on() -> None:
    model = tiny_model("llama", hidden_size=96, intermediate_size=160)
    rows = exact_rows(PackedModel(model, linear_paths(model)), 512)
    weight, x = model.model.layers[0].mlp.down_proj.weight, torch.rand(512, 160)
    whole = torch.nn.functional.linear(x[: rows.most], weight)
    for count in (rows.least, (rows.least + rows.most) // 2, rows.most):
        assert torch.equal(torch.nn.functional.linear(x[:count], weight), whole[:count])
