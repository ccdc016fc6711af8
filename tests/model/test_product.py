"""Products of frozen layers: whoever asks first, the layers' weights stay what can be trained over."""

import torch
from torch import nn
from torch.nn import functional

from mint_stream.model.product import Product


def test_weights_that_an_engine_shared_first_can_be_trained_over() -> None:
    """In float64 even a CPU shares the joined weight, as devices do."""
    layers = [nn.Linear(6, width, bias=False).double().requires_grad_(False) for width in (3, 5)]
    before = [layer.weight.clone() for layer in layers]
    x = torch.randn(4, 6, dtype=torch.float64)
    with torch.inference_mode():
        y = Product(layers)(x)
    assert torch.equal(y, torch.cat([functional.linear(x, weight) for weight in before], dim=1))
    assert layers[0].weight.untyped_storage().data_ptr() == layers[1].weight.untyped_storage().data_ptr()
    learned = x.requires_grad_()
    functional.linear(learned, layers[1].weight).sum().backward()
    assert learned.grad is not None and torch.equal(learned.grad, before[1].sum(0).expand(4, 6))
