"""Attention over a packed pass: each sequence sees its own past only, decode rows of many sequences are computed together.

Registered with transformers under the name "mint", with its mask function, so stock models call it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from mint_stream.errors import BaseUnusable
from mint_stream.kernels.attention import packed_attention, paged_attention, takes_attention
from mint_stream.kernels.attention_plan import PagedSpan, PagedSpans
from mint_stream.kernels.attention_rule import Rule
from mint_stream.model.attend import one, packed
from mint_stream.model.latent import attend_latents, is_latent
from mint_stream.model.passes import PAGED_SPANS, KeyValues, Pages, Pass

NAME = "mint"
_HARMLESS = {"is_causal", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits"}
"""Keywords stock models pass along that change nothing here. Anything else might, so it is refused."""


def register() -> None:
    """Make `attn_implementation="mint"` known to transformers. Calling it again changes nothing."""
    AttentionInterface.register(NAME, mint_attention)
    AttentionMaskInterface.register(NAME, mint_mask)


def mint_mask(*args: Any, **kwargs: Any) -> None:
    """No dense mask is ever built. A mask that is neither causal nor a sliding window is refused: we would compute something else."""
    visible: Callable[..., Any] = kwargs["mask_function"]
    window: int | None = kwargs.get("local_size")  # 0 in kinds that make the mask and have no layer for it
    if window and not bool(visible(0, 0, torch.tensor(window), torch.tensor(1))):
        raise BaseUnusable("this base uses chunked attention, which is not supported: choose a base with full or sliding-window attention")
    if bool(visible(0, 0, torch.tensor(0), torch.tensor(1))):
        raise BaseUnusable("this base's attention is not causal: choose a causal language model")


def mint_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    indices: Tensor | None = None,
    mint_pass: Pass | None = None,
    mint_cache: KeyValues | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, T, width], key and value [1, kv_heads, T, width] → [1, T, heads, value width], for the spans of `mint_pass`."""
    _refuse(module, None if indices is not None else attention_mask, dropout, unknown)  # what chose the indices has heeded the mask
    if mint_pass is None:
        raise ValueError('attention "mint" needs the pass in progress: call the model through PackedModel.forward')
    rule = Rule(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    if is_latent(module):
        return attend_latents(query, key, value, rule, mint_pass, indices), None
    if indices is not None:
        raise BaseUnusable(f"{type(module).__name__} asks attention for indices, which is supported where latents are cached only")
    if mint_cache is None:
        return _whole(query, key, value, rule, mint_pass)[None], None
    stored = mint_cache.layer(int(module.layer_idx))  # type: ignore[arg-type]  # torch types every attribute of a module as Tensor
    if isinstance(stored, Pages):
        return _paged(query, stored, rule, mint_pass)[None], None
    return packed(query, key, value, stored, rule, mint_pass)[None], None


def _whole(query: Tensor, key: Tensor, value: Tensor, rule: Rule, pass_: Pass) -> Tensor:
    """[T, heads, value width] of spans that are whole sequences, with gradients."""
    q, k, v = (side[0].transpose(0, 1) for side in (query, key, value))
    if takes_attention(q, k, v):
        return packed_attention(q, k, v, pass_.shared("whole spans", lambda: _sequences(pass_)), rule)
    return torch.cat([one(span, query, key, value, None, rule, pass_) for span in pass_.spans])


def _paged(query: Tensor, stored: Pages, rule: Rule, pass_: Pass) -> Tensor:
    """[T, heads, value width] of spans whose keys and values are in pages, their own rows among them."""
    spans = pass_.shared(PAGED_SPANS, lambda: _spans(pass_))
    return paged_attention(query[0].transpose(0, 1), stored.keys, stored.values, stored.table, spans, rule)


def _spans(pass_: Pass) -> PagedSpans:
    spans = (PagedSpan(span.start, span.end, span.position, span.slot) for span in pass_.spans)
    return PagedSpans(tuple(spans), len(pass_.tokens))


def _sequences(pass_: Pass) -> PagedSpans:
    return PagedSpans(tuple(PagedSpan(span.start, span.end, 0, at) for at, span in enumerate(pass_.spans)), len(pass_.tokens))


def _refuse(module: nn.Module, mask: Tensor | None, dropout: float, unknown: dict[str, Any]) -> None:
    odd = sorted(name for name, value in unknown.items() if value is not None and name not in _HARMLESS)
    if odd:
        raise BaseUnusable(f"{type(module).__name__} asks attention for {', '.join(odd)}, which is not supported")
    if mask is not None:
        raise BaseUnusable(f"{type(module).__name__} brings its own attention mask, which is not supported")
    if dropout:
        raise BaseUnusable(f"{type(module).__name__} drops attention weights: load the base with attention_dropout 0")
    if unknown.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise BaseUnusable(f"{type(module).__name__} looks ahead: choose a causal language model")
