"""Fused layers and joined products compute what the stock ones do; what they are not made for stays stock."""

import pytest
import torch
from torch import nn

from mint_stream.adapter import AdapterBlock, AdapterLayer, AdapterWeights
from mint_stream.kernels import LoraWeights, Segments
from mint_stream.model.forward import PackedModel
from mint_stream.model.fused import FusedLayer
from mint_stream.model.passes import AdapterSet, Pass, pack
from mint_stream.model.product import Product
from mint_stream.model.tiny import linear_paths, tiny_model

TOKENS = ([5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22], [30, 31, 32, 33])


def adapters_of(model: nn.Module) -> AdapterSet:
    generator = torch.Generator().manual_seed(1)
    layers = {
        path: AdapterLayer(torch.randn(3, width, generator=generator) * 0.3, torch.randn(height, 3, generator=generator) * 0.3, 0.5)
        for path, (width, height) in linear_paths(model).items()
    }
    block = AdapterBlock.build(AdapterWeights(layers=layers, config={}))
    return AdapterSet([{path: LoraWeights(layer.A, layer.Bt) for path, layer in block.layers.items()}])


def is_fused(model: nn.Module) -> list[bool]:
    return [isinstance(layer.forward, FusedLayer) for layer in model.model.layers]  # type: ignore[union-attr]


def run(model: nn.Module, fused: bool, adapters: AdapterSet) -> torch.Tensor:
    packed = PackedModel(model, linear_paths(model))
    for layer in model.model.layers:  # type: ignore[union-attr]
        if not fused and isinstance(layer.forward, FusedLayer):
            del layer.forward
    pass_: Pass = pack([(TOKENS[0], 0), (TOKENS[1], -1), (TOKENS[2], 0)], adapters=adapters)
    with torch.inference_mode():
        return packed.forward(pass_)


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "mistral", "qwen3"])
def test_a_fused_layer_computes_what_the_stock_one_does(kind: str) -> None:
    adapters = adapters_of(tiny_model(kind))
    whole, stock = tiny_model(kind), tiny_model(kind)
    torch.testing.assert_close(run(whole, True, adapters), run(stock, False, adapters), atol=2e-5, rtol=1e-4)
    assert is_fused(whole) == [True, True] and is_fused(stock) == [False, False]


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "gpt_oss", "mixtral"])
def test_layers_of_other_kinds_stay_stock(kind: str) -> None:
    model = tiny_model(kind)
    PackedModel(model, linear_paths(model))
    assert is_fused(model) == [False, False]


def test_another_activation_and_a_bias_on_one_of_three_stay_stock() -> None:
    for change in ("activation", "bias"):
        model = tiny_model("llama")
        layer = model.model.layers[0]
        if change == "activation":
            layer.mlp.act_fn = nn.GELU()
        else:
            layer.self_attn.k_proj.bias = None
        PackedModel(model, linear_paths(model))
        assert is_fused(model) == [False, True]


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_the_linear_layers_side_by_side(rows: int, bias: bool, dtype: torch.dtype) -> None:
    layers = [nn.Linear(24, width, bias=bias).to(dtype).requires_grad_(False) for width in (16, 8)]
    x, other = torch.randn(rows, 24).to(dtype), torch.randn(rows, 24).to(dtype)
    expected = torch.cat([layer(x) for layer in layers], dim=1)
    product = Product(layers)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(product(x), expected, **tolerance)
    torch.testing.assert_close(product.added_to(other, x), expected + other, **tolerance)
    assert product.widths == (16, 8)


def test_weights_that_are_not_laid_out_anew_take_no_more_memory() -> None:
    layers = [nn.Linear(24, width).double().requires_grad_(False) for width in (16, 8)]
    x = torch.randn(3, 24, dtype=torch.float64)
    before = torch.cat([layer(x) for layer in layers], dim=1)
    product = Product(layers)
    torch.testing.assert_close(product(x), before)
    torch.testing.assert_close(torch.cat([layer(x) for layer in layers], dim=1), before)
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1


def test_a_pass_in_training_goes_through_the_stock_layers() -> None:
    model = tiny_model("llama")
    packed = PackedModel(model, linear_paths(model))
    pass_ = Pass((5, 6, 7), pack([((5, 6, 7), -1)]).spans, (0, 1, 2), Segments((), 3), training=True)
    called: list[bool] = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: called.append(True))
    packed.forward(pass_)
    assert called == [True]
