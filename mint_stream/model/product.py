"""Products with frozen weights: x Wᵀ + b of one linear layer, or of several that read the same x, as fast as the device can."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mint_stream.model.quantised import is_plain


class Product:
    """x [rows, in] → [rows, Σ out]: the outputs of `layers`, side by side in their order. No gradients.

    On CPUs the weights are laid out once more the way oneDNN multiplies them, which takes their size in memory again and makes passes of
    few rows about twice as fast. That happens at the first call, so that a process that only trains pays nothing. Elsewhere the layers
    share the joined weight's memory. Quantised weights stay as they are, and each layer's product is its own.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._layers = tuple(layers)
        self._bias = _joined([layer.bias for layer in layers])
        self._weight: Tensor | None = None
        self._plain = all(is_plain(layer.weight) for layer in layers)
        self.widths = tuple(layer.out_features for layer in layers)

    def __call__(self, x: Tensor) -> Tensor:
        """The product of contiguous x."""
        if not self._plain:
            return self._each(x)
        weight = self._prepared()
        if weight.is_mkldnn:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, self._bias, "none", [], "")
            return y
        return functional.linear(x, weight, self._bias)

    def added_to(self, other: Tensor, x: Tensor) -> Tensor:
        """other + the product, other [rows, Σ out]."""
        if not self._plain:
            return self._each(x).add_(other)
        weight = self._prepared()
        if weight.is_mkldnn:
            y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, self._bias, "add")
            return y
        return functional.linear(x, weight, self._bias).add_(other)

    def _each(self, x: Tensor) -> Tensor:
        parts = [functional.linear(x, layer.weight, layer.bias) for layer in self._layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _prepared(self) -> Tensor:
        if self._weight is None:
            self._weight = self._made()
        return self._weight

    @torch.inference_mode(False)  # an engine's first pass may be the first call, and what it shares has to be trained over as well
    @torch.no_grad()
    def _made(self) -> Tensor:
        joined = _joined([layer.weight for layer in self._layers])
        assert joined is not None
        return torch.ops.mkldnn._reorder_linear_weight(joined.detach()) if _packs(joined) else self._shared(joined)

    def _shared(self, joined: Tensor) -> Tensor:
        """The layers' own weights become parts of the joined one, so that the memory is that of one of them."""
        for layer, part in zip(self._layers, torch.split(joined, list(self.widths)), strict=True):
            layer.weight.data = part.detach()
        return joined


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One below the other; the part itself when it is alone. Layers without a bias among layers with one have zeros."""
    known = [part for part in parts if part is not None]
    if not known or len(parts) == 1:
        return known[0] if known else None
    assert len(known) == len(parts), "layers that share a product have a bias all or none"
    return torch.cat([part.detach() for part in known])


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN has a layout of its own for this weight here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
