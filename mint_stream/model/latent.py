"""Multi-head latent attention (MLA) and its sparse kind (DSA): the cache holds compressed latents, which each layer expands again.

The latents of all sequences of a pass stand one after the other, each sequence's from its first token on. `kv_b_proj` runs over these
cached rows and not over the pass's tokens, so that is the space in which its rows have their adapters. A sparse layer sees, besides,
which of them each token may look at, and says which it has chosen.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from mint_stream.kernels.attention_rule import Rule
from mint_stream.kernels.torch_attention import attend, causal_mask
from mint_stream.model.pass_cache import PassCache
from mint_stream.model.passes import KeyValues, Pass


def is_latent(module: nn.Module) -> bool:
    """Whether this attention expands what the cache gives it."""
    return hasattr(module, "expand_kv") and hasattr(module, "kv_b_proj")


def latent_layers(model: nn.Module) -> frozenset[int]:
    """The cache's layers that hold latents."""
    return frozenset(int(module.layer_idx) for module in model.modules() if is_latent(module))  # type: ignore[arg-type]


def chooses(model: nn.Module) -> bool:
    """Whether some layers choose what they look at, and need to be told what they may."""
    return any(is_latent(module) and getattr(module, "indexer", None) is not None for module in model.modules())


class LatentCache(PassCache):
    """The cache as the layers of one pass see it: what they wrote, and of latents all that their sequences have."""

    def __init__(self, cache: KeyValues, pass_: Pass, layers: frozenset[int]) -> None:
        super().__init__()
        self._cache, self._pass, self._layers = cache, pass_, layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write latents [1, 1, rows, width]; give back those of all cached rows [1, 1, cached rows, width]. Others as the cache does."""
        fresh = self._cache.update(keys, values, layer_idx)
        if layer_idx not in self._layers:
            return fresh
        return self._cache.gathered(layer_idx, self._pass)

    def update_indexer(self, keys: Tensor, layer_idx: int) -> Tensor:
        """Write an indexer's keys [1, rows, width]; give back those of all cached rows.

        They lie in a layer of the cache of their own, half of each as keys and half as values.
        """
        mine, half = -1 - layer_idx, keys.shape[-1] // 2
        self._cache.update(keys[:, None, :, :half], keys[:, None, :, half:], mine)
        return torch.cat([side[0] for side in self._cache.gathered(mine, self._pass)], dim=-1)


def visible(pass_: Pass, device: torch.device) -> Tensor:
    """[1, 1, T, cached rows]: where a token may look, which is the past of its own sequence and itself."""
    seen = torch.zeros(len(pass_.tokens), pass_.cached_rows, dtype=torch.bool, device=device)
    for span, begin in zip(pass_.spans, _starts(pass_), strict=True):
        rows = torch.arange(span.position, span.length, device=device)[:, None]
        seen[span.start : span.end, begin : begin + span.length] = torch.arange(span.length, device=device) <= rows
    return seen[None, None]


def attend_latents(query: Tensor, key: Tensor, value: Tensor, rule: Rule, pass_: Pass, chosen: Tensor | None) -> Tensor:
    """query [1, heads, T, width], key and value of all cached rows → [1, T, heads, value width].

    chosen [1, T, k]: a sparse layer's cached rows of each token; among those it may not look at, any.
    """
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    for span, begin in zip(pass_.spans, _starts(pass_), strict=True):
        mask = pass_.shared(("latent", span, rule.window), lambda span=span: causal_mask(span.position, span.length, rule.window, query))  # type: ignore[misc]
        if chosen is not None:
            mask = mask + _unchosen(chosen[:, span.start : span.end].long() - begin, mask)
        keys, values = (side[:, :, begin : begin + span.length] for side in (key, value))
        out[span.start : span.end] = attend(query[:, :, span.start : span.end], keys, values, mask, rule)[0].transpose(0, 1)
    return out[None]


def _unchosen(chosen: Tensor, like: Tensor) -> Tensor:
    """[1, 1, rows, length]: 0 at the columns chosen [1, rows, k], -inf elsewhere. Columns of other sequences are none of ours."""
    length = like.shape[-1]
    mine = torch.where((chosen >= 0) & (chosen < length), chosen, length)
    mask = like.new_full((*chosen.shape[:2], length + 1), -torch.inf).scatter_(-1, mine, 0.0)
    return mask[:, None, :, :length]


def _starts(pass_: Pass) -> list[int]:
    """Where each span's sequence begins among the cached rows."""
    return list(accumulate((span.length for span in pass_.spans[:-1]), initial=0)) if pass_.spans else []
