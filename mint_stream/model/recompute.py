"""Activation checkpointing: of each layer a training pass keeps the input alone, and makes the rest again when gradients come back.

That costs one more forward pass and saves most of a pass's memory. The bits are the same: the layer runs on the same input, under the same
pass, with the same dropout.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mint_stream.model.forward import PackedModel
from mint_stream.model.lora_linear import LoraSites
from mint_stream.model.passes import Pass


def recompute_layers(packed: PackedModel) -> int:
    """Let the layers of this model be recomputed in training. Returns how many."""
    layers = list(packed.model.get_decoder().layers)  # type: ignore[operator]  # a method of every transformers model
    for layer in layers:
        layer.forward = Recomputed(layer.forward, packed.sites)
    return len(layers)


class Recomputed:
    """The forward of one layer."""

    def __init__(self, forward: Callable[..., Any], sites: LoraSites) -> None:
        self._forward = forward
        self._sites = sites

    def __call__(self, hidden_states: Tensor, **given: Any) -> Any:
        """As the layer's."""
        pass_: Pass | None = given.get("mint_pass")
        if pass_ is None or not (pass_.training and torch.is_grad_enabled()):
            return self._forward(hidden_states, **given)

        def again(states: Tensor) -> Any:
            with self._sites.applied(pass_):  # gradients may come back on a thread that has no pass
                return self._forward(states, **given)

        return checkpoint(again, hidden_states, use_reentrant=False, preserve_rng_state=False)
