"""Recomputed layers give the same bits and keep less."""

import pytest
import torch
from torch import Tensor

from mint_stream.kernels import Dropout, LoraWeights
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import AdapterSet, pack
from mint_stream.model.recompute import recompute_layers
from mint_stream.model.tiny import linear_paths, tiny_model

TOKENS = list(range(40, 80))


def learned(kind: str, recomputed: bool) -> tuple[Tensor, list[Tensor], int]:
    """Logits, the gradients of an adapter with dropout, and the bytes that the forward pass kept for the backward one."""
    model = tiny_model(kind)
    packed = PackedModel(model, linear_paths(model))
    if recomputed:
        assert recompute_layers(packed) == len(model.model.layers)
    draw = torch.Generator().manual_seed(0)
    layers = {}
    for path, (width_in, width_out) in linear_paths(model).items():
        a, bt = torch.randn(4, width_in, generator=draw) * 0.1, torch.randn(4, width_out, generator=draw) * 0.1
        layers[path] = LoraWeights(a, bt, 2.0, torch.zeros_like(a), torch.zeros_like(bt), Dropout(0.2, 7))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: (kept.append(one.numel() * one.element_size()), one)[1], lambda one: one):
        logits = packed.forward(pack([(TOKENS, 0), (TOKENS[:9], -1)], adapters=AdapterSet([layers]), training=True))
    logits.square().sum().backward()
    return logits.detach(), [part for one in layers.values() for part in (one.grad_A, one.grad_Bt) if part is not None], sum(kept)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3_moe"])
def test_the_bits_are_the_same_and_less_is_kept(kind: str) -> None:
    logits, gradients, kept = learned(kind, recomputed=False)
    again, others, less = learned(kind, recomputed=True)
    assert torch.equal(logits, again)
    assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True)) and any(one.any() for one in gradients)
    assert less < 0.5 * kept


def test_passes_without_gradients_are_not_touched() -> None:
    model = tiny_model("llama")
    packed = PackedModel(model, linear_paths(model))
    before = packed.forward(pack([(TOKENS, -1)]))
    recompute_layers(packed)
    assert torch.equal(packed.forward(pack([(TOKENS, -1)])), before)
