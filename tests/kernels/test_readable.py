"""What goes through torch on a device is decided from shapes, and named."""

import pytest
import torch

from mint_stream.kernels.readable import head, through_torch

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("width", "dtype", "taken"),
    [
        (64, FP32, True), (128, FP32, True), (132, FP32, False), (18, FP32, False), (20, FP32, True),
        (256, BF16, True), (264, BF16, False), (20, BF16, False), (24, BF16, True), (64, torch.float64, False),
    ],
)  # fmt: skip
def test_heads_begin_at_sixteen_bytes_and_are_not_too_wide(width: int, dtype: torch.dtype, taken: bool) -> None:
    assert head(width, dtype) == taken


def test_a_model_that_the_kernels_read_whole_has_nothing_to_say() -> None:
    layers = {"a": (64, 192), "experts": (64, 32, 8)}
    assert through_torch({64, 128}, layers, BF16) == () == through_torch((), {}, FP32)


def test_each_kind_of_what_they_cannot_read_is_named_by_its_size_and_first_layer() -> None:
    layers = {"model.layers.0.q_proj": (64, 64), "model.layers.0.router": (64, 60), "model.layers.1.router": (64, 60)}
    assert through_torch({64, 512, 320}, layers, BF16) == (
        "attention over heads of 320, 512 numbers in bfloat16",
        "adapters of 2 layers in bfloat16, model.layers.0.router (64 to 60) first",
    )
