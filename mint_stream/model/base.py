"""The resident base: a transformers causal language model loaded once, frozen, and described for everything that adapts it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mint_stream.adapter import BlockForm, LayerShape, grouped_targets
from mint_stream.errors import BaseUnusable
from mint_stream.kernels.native_library import kernels
from mint_stream.messages.shared import TargetShape
from mint_stream.model import attention
from mint_stream.model.digest import base_digest
from mint_stream.model.forward import PackedModel
from mint_stream.model.parameters import bare_parameters
from mint_stream.model.quantised import check_quantised

__all__ = ["ResidentBase", "base_digest", "describe", "load_base", "native_dtype"]

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_LAYER_TYPES_OF = {
    "deepseek_v32": frozenset({"indexed_attention"}),
    "glm_moe_dsa": frozenset({"indexed_attention"}),
    "qwen3_next": frozenset({"linear_attention"}),
}
"""Layers that are served in the kinds they were held to PEFT in, and in no other."""
_HYBRIDS = frozenset({"qwen3_next"})
"""Kinds of linear and full attention whose source was read: transformers does not say that they take part in its attention registry."""
_OF_THEIR_OWN = frozenset({"diffllama", "doge", "hrm_text", "jetmoe", "nemotron"})
"""Kinds that failed the trial at start; a test shows it. Others that would are refused there."""
_BATCH_DEPENDENT_ROTARY = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True)
class ResidentBase:
    """A loaded base. `linears` has (in, out) of every linear layer an adapter could target, `output_head` among them."""

    model: Any
    tokenizer: Any
    digest: str
    path: Path
    context_tokens: int
    vocabulary_tokens: int
    eos_tokens: frozenset[int]
    linears: dict[str, tuple[int, int]]
    output_head: str | None
    """The module path of the layer that makes logits; "all-linear" leaves it out."""
    dtype: torch.dtype
    device: torch.device
    parameters: Mapping[str, LayerShape] = field(default_factory=dict)
    """Bare parameters that an adapter can target when it is served (not trained): routers and experts, with (in, out, experts)."""

    @cached_property
    def packed(self) -> PackedModel:
        """The model prepared for packed passes, once for all that run on it."""
        return PackedModel(self.model, self.linears, self.output_head)

    @property
    def layers(self) -> dict[str, LayerShape]:
        """The shapes of all an adapter may target."""
        return {**self.linears, **self.parameters}

    @property
    def architecture(self) -> str:
        """The class of the model, e.g. LlamaForCausalLM."""
        return type(self.model).__name__

    @property
    def adapter_dtype(self) -> torch.dtype:
        """What its adapters are kept in: the base's own; on CPUs float32 where torch multiplies by them, whose small products want that."""
        return torch.float32 if self.device.type == "cpu" and kernels() is None else self.dtype

    @property
    def block_form(self) -> BlockForm:
        """How its adapters are held on the host, before they are placed on its device."""
        return BlockForm(self.adapter_dtype, pinned=self.device.type == "cuda")

    def targets(self) -> tuple[TargetShape, ...]:
        """What an adapter may target by kind, for the pool's base-models record."""
        return grouped_targets({path: (shape, 0) for path, shape in self.layers.items()})


def load_base(
    path: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", attn_implementation: str = attention.NAME
) -> ResidentBase:
    """Load the model directory at `path`. Raises BaseUnusable for what cannot be read and, by name, for what we cannot serve."""
    digest = base_digest(path)
    place = torch.device(device)
    attention.register()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        check_servable(config)
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype or native_dtype(place),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in `found`, and refused below by name
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BaseUnusable(f"the base at {path} cannot be loaded: {error}") from error
    _check_whole(path, found)
    return describe(model.to(place), tokenizer, path, digest)


def describe(model: Any, tokenizer: Any, path: Path, digest: str) -> ResidentBase:
    """The ResidentBase of a model and its tokenizer; freezes the model."""
    model.eval().requires_grad_(False)
    config = model.config.get_text_config()
    weight = next(model.parameters())
    return ResidentBase(
        model=model,
        tokenizer=tokenizer,
        digest=digest,
        path=path,
        context_tokens=int(config.max_position_embeddings),
        vocabulary_tokens=int(config.vocab_size),
        eos_tokens=_eos_tokens(model, tokenizer),
        linears={name: (part.in_features, part.out_features) for name, part in model.named_modules() if isinstance(part, nn.Linear)},
        output_head=_path_of(model, model.get_output_embeddings()),
        dtype=weight.dtype,
        device=weight.device,
        parameters=bare_parameters(model),
    )


def _check_whole(path: Path, found: Mapping[str, Any]) -> None:
    """transformers fills what a file lacks with random numbers and goes on; we do not."""
    absent = sorted(found["missing_keys"]) + sorted(str(entry) for entry in found["mismatched_keys"])
    if absent:
        raise BaseUnusable(f"the weights at {path} lack {len(absent)} tensors of the right shape, {absent[0]} first: fetch the base again")


def native_dtype(device: torch.device) -> torch.dtype:
    """The dtype that `device` multiplies fastest: bfloat16 where it has matrix units for it (AMX, Ampere and later), else float32."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        fast = bool(torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else torch.float32


def check_servable(config: Any) -> None:
    """Raises BaseUnusable, by name, for an architecture whose passes cannot be packed or whose rows would change each other."""
    name = (config.architectures or [type(config).__name__])[0]
    kind = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if kind is None:
        raise BaseUnusable(f"{name} is not a causal language model that this transformers knows")
    if not kind._supports_attention_backend and config.model_type not in _HYBRIDS:
        raise BaseUnusable(f"{name} does not take part in transformers' attention registry, so its passes cannot be packed")
    check_quantised(name, config)
    text = config.get_text_config()
    if odd := set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES - _LAYER_TYPES_OF.get(text.model_type, frozenset()):
        raise BaseUnusable(f"{name} has {', '.join(sorted(odd))} layers, which are not supported")
    if getattr(kind, "_is_stateful", False) and config.model_type not in _HYBRIDS:
        raise BaseUnusable(f"{name} keeps a recurrent state, which is supported for {', '.join(sorted(_HYBRIDS))} only")
    if config.model_type in _OF_THEIR_OWN:
        raise BaseUnusable(f"{name} attends in a way of its own, which packed passes do not have")
    if getattr(text, "num_kv_shared_layers", 0):
        raise BaseUnusable(f"{name} has layers that share keys and values, which is not supported")
    if odd := _rotary_types(text) & _BATCH_DEPENDENT_ROTARY:
        raise BaseUnusable(f"{name} uses {', '.join(sorted(odd))} rotary scaling: its numbers depend on the longest sequence beside them")


def _rotary_types(config: Any) -> set[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(one["rope_type"]) for one in nested or [parameters] if one.get("rope_type")}


def _eos_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    given = [model.generation_config.eos_token_id if model.generation_config else None, model.config.eos_token_id, tokenizer.eos_token_id]
    return frozenset(token for one in given if one is not None for token in (one if isinstance(one, list) else [one]))


def _path_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None) if wanted is not None else None
