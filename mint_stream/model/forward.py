"""Running a pass through a stock transformers model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mint_stream.errors import BaseUnusable
from mint_stream.model import attention, experts, parameters, recurrent
from mint_stream.model.fused import fuse
from mint_stream.model.latent import LatentCache, chooses, latent_layers, visible
from mint_stream.model.lora_linear import LoraSites
from mint_stream.model.pass_cache import PassCache
from mint_stream.model.passes import KeyValues, Pass


class Uncached(PassCache):
    """Keeps nothing: for passes made of whole sequences. Present so that stock models build no masks of their own."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Give them back."""
        return keys, values

    def update_indexer(self, keys: Tensor, layer_idx: int) -> Tensor:
        """Give them back."""
        return keys


class PackedModel:
    """A resident model prepared for packed passes: attention "mint", LoRA sites in place. Serving and training call `forward`."""

    def __init__(self, model: nn.Module, linears: Mapping[str, object], head: str | None = "lm_head") -> None:
        """`linears` are the module paths an adapter may target. Raises BaseUnusable when the model does not take part."""
        attention.register()
        self.model = model
        self.sites = LoraSites(model, linears, head)
        self.latent, self._chooses = latent_layers(model), chooses(model)
        parameters.install(model, self.sites.current)
        recurrent.install(model, self.sites)
        if any(experts.is_experts(module) for module in model.modules()):
            experts.register()
            model.set_experts_implementation(experts.NAME)  # type: ignore[operator]
        model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
        self.fused = fuse(model) == model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
        """Whether every layer is of the plain kind whose steps are known, one by one."""
        if getattr(model.config, "_attn_implementation", None) != attention.NAME:
            raise BaseUnusable(f"{type(model).__name__} does not use transformers' attention registry, so its passes cannot be packed")

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def forward(self, pass_: Pass, cache: KeyValues | None = None) -> Tensor:
        """Logits [selected rows, vocabulary]. `cache` holds what earlier passes wrote; None: every span is a whole sequence.

        With `pass_.training` gradients flow: call backward on anything made of the logits, within `sites.applied(pass_)` when
        layers are recomputed. The adapters' gradient slices are added to in place.
        """
        with self.sites.applied(pass_), torch.set_grad_enabled(pass_.training):
            inputs = pass_.inputs(self.device)
            output = self.model(
                input_ids=inputs.tokens,
                position_ids=inputs.positions,
                attention_mask=visible(pass_, self.device) if self._chooses else None,
                past_key_values=self._seen(cache, pass_),
                use_cache=True,
                logits_to_keep=inputs.selected,
                mint_pass=pass_,
                mint_cache=cache,
            )
        logits: Tensor = output.logits[0]
        return logits

    def _seen(self, cache: KeyValues | None, pass_: Pass) -> KeyValues:
        """The cache as the model's layers see it."""
        if cache is None:
            return Uncached()
        return LatentCache(cache, pass_, self.latent) if self.latent else cache
