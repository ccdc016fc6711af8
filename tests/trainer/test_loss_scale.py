"""Half precision has gradients too small for it: the loss is scaled, each job's by its own scale."""

import pytest
import torch

from mint_stream.trainer.loss_scale import FIRST, GROWS_AFTER, LIMIT, LossScale


@pytest.mark.parametrize(("dtype", "first"), [(torch.float16, FIRST), (torch.bfloat16, 1.0), (torch.float32, 1.0)])
def test_only_half_precision_is_scaled(dtype: torch.dtype, first: float) -> None:
    assert LossScale.of(dtype).value == first


def test_it_halves_down_to_one_and_then_it_can_help_no_more() -> None:
    scale = LossScale(4.0, 7)
    assert scale.shrink() and (scale.value, scale.steps) == (2.0, 0)
    assert scale.shrink() and not scale.shrink() and scale.value == 1.0


def test_it_doubles_after_many_good_steps_up_to_a_limit_and_one_stays_one() -> None:
    scale, plain, top = LossScale(8.0), LossScale(1.0), LossScale(LIMIT)
    for one in (scale, plain, top):
        for _ in range(GROWS_AFTER - 1):
            one.made()
    assert scale.value == 8.0
    for one in (scale, plain, top):
        one.made()
    assert (scale.value, scale.steps, plain.value, top.value) == (16.0, 0, 1.0, LIMIT)
