"""AdapterBlock: one contiguous tensor whose views compute what the adapter computes."""

from itertools import pairwise

import pytest
import torch

from mint_stream.adapter import AdapterBlock, AdapterLayer, AdapterWeights
from mint_stream.errors import InvalidAdapter
from tests.factories import LINEARS, random_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_every_view_lies_in_the_block_and_starts_at_a_multiple_of_16_bytes(dtype: torch.dtype, rank: int) -> None:
    block = AdapterBlock.build(random_weights({**LINEARS, "odd": (5, 7)}, rank), dtype)
    start, end = block.flat.data_ptr(), block.flat.data_ptr() + block.nbytes
    spans = []
    for layer in block.layers.values():
        for view in (layer.A, layer.Bt):
            assert view.is_contiguous()
            assert (view.data_ptr() - start) % 16 == 0
            spans.append((view.data_ptr(), view.data_ptr() + view.numel() * view.element_size()))
    spans.sort()
    assert spans[0][0] == start
    assert spans[-1][1] <= end
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_the_scaled_product(dtype: torch.dtype) -> None:
    weights = random_weights(rank=3, alpha=5)
    block = AdapterBlock.build(weights, dtype)
    for path, layer in weights.layers.items():
        torch.testing.assert_close(block.layers[path].A.float(), layer.A.to(dtype).float(), atol=0, rtol=0)
        torch.testing.assert_close(block.layers[path].Bt.float(), (layer.B.t() * (5 / 3)).to(dtype).float())
    assert block.digest == weights.digest
    assert block.rank == 3


def test_numbers_a_narrow_dtype_cannot_hold_are_refused() -> None:
    weights = random_weights({"x": (8, 8)})
    layer = weights.layers["x"]
    large = AdapterWeights(layers={"x": AdapterLayer(layer.A * 1e6, layer.B, layer.scaling)}, config=weights.config)
    AdapterBlock.build(large)
    with pytest.raises(InvalidAdapter, match="too large for"):
        AdapterBlock.build(large, torch.float16)


def test_moving_to_where_it_is_copies_nothing() -> None:
    block = AdapterBlock.build(random_weights())
    assert block.to("cpu") is block


def test_a_move_keeps_every_view() -> None:
    block = AdapterBlock.build(random_weights()).to("meta")
    assert block.flat.device.type == "meta"
    assert {path: (layer.A.shape[1], layer.Bt.shape[1]) for path, layer in block.layers.items()} == LINEARS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_views_hold_the_same_numbers() -> None:
    weights = random_weights()
    here, there = AdapterBlock.build(weights), AdapterBlock.build(weights, device="cuda")
    for path, layer in here.layers.items():
        assert torch.equal(there.layers[path].A.cpu(), layer.A)
        assert torch.equal(there.layers[path].Bt.cpu(), layer.Bt)
