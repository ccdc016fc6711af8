"""Decoder layers with fewer and larger steps than the stock ones, for the plain kind that most bases are made of.

x += o(attention(rope(qkv(norm(x)))))        q, k, v in one product, their adapters' parts after one shrink
x += down(silu(gate(norm(x))) · up(norm(x)))  gate and up likewise

Which layers are of that kind is decided by their class: their source was read. Stock layers define the meaning, a parity test binds
these to them, and every other class, training, and layers with biases on some of the joined linears only stay stock.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from mint_stream.kernels import add_lora_slices
from mint_stream.kernels.rowwise import gated, rms_norm, rotated
from mint_stream.model.attention import mint_attention
from mint_stream.model.lora_linear import LoraLinear
from mint_stream.model.passes import KeyValues, Pass
from mint_stream.model.product import Product

PLAIN_LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})


def fuse(model: nn.Module) -> int:
    """Give the layers of `model` that can take it a fused forward; module paths and weights stay. Returns how many."""
    layers = [layer for layer in model.modules() if type(layer).__name__ in PLAIN_LAYERS and _joinable(layer)]
    for layer in layers:
        layer.forward = FusedLayer(layer, layer.forward)
    return len(layers)


def _joinable(layer: Any) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    groups = [(attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)]
    linears = [*groups[0], *groups[1], attention.o_proj, mlp.down_proj]
    alike = all(len({linear.bias is None for linear in group}) == 1 for group in groups)
    return alike and all(isinstance(linear, LoraLinear) for linear in linears) and isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation))


class Joined:
    """LoRA sites that read the same x, as one product."""

    def __init__(self, *sites: LoraLinear) -> None:
        self._paths = tuple(site.path for site in sites)
        self._product = Product(sites)
        self.widths = self._product.widths

    def __call__(self, x: Tensor, pass_: Pass) -> Tensor:
        """[rows, Σ out]"""
        return self._adapted(self._product(x), x, pass_)

    def added_to(self, other: Tensor, x: Tensor, pass_: Pass) -> Tensor:
        """other + that."""
        return self._adapted(self._product.added_to(other, x), x, pass_)

    def _adapted(self, y: Tensor, x: Tensor, pass_: Pass) -> Tensor:
        weights = pass_.adapters.slices(self._paths)
        if weights is not None:
            ys = (y,) if len(self.widths) == 1 else torch.split(y, list(self.widths), dim=1)
            add_lora_slices(x, ys, pass_.segments, weights)
        return y


class FusedLayer:
    """The forward of one decoder layer."""

    def __init__(self, layer: Any, stock: Callable[..., Tensor]) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._stock, self._attention = stock, attention
        self._window = _window(attention)
        self._norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self._qkv = Joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._o, self._gate_up, self._down = Joined(attention.o_proj), Joined(mlp.gate_proj, mlp.up_proj), Joined(mlp.down_proj)

    def __call__(self, hidden_states: Tensor, **given: Any) -> Tensor:
        """hidden_states [1, T, hidden] → the same shape. Keywords as the stock layer's."""
        pass_: Pass | None = given.get("mint_pass")
        if pass_ is None or pass_.training:
            return self._stock(hidden_states, **given)
        x = hidden_states[0]
        attended = self._attend(_normed(x, self._norms[0]), pass_, given)
        x = self._o.added_to(x, attended, pass_)
        return self._down.added_to(x, gated(self._gate_up(_normed(x, self._norms[1]), pass_)), pass_)[None]

    def _attend(self, x: Tensor, pass_: Pass, given: Mapping[str, Any]) -> Tensor:
        """[T, heads · width]"""
        attention = self._attention
        cache: KeyValues | None = given.get("mint_cache")
        width = attention.head_dim
        qkv = self._qkv(x, pass_).view(x.shape[0], -1, width)
        heads, kv_heads = self._qkv.widths[0] // width, self._qkv.widths[1] // width
        cos, sin = (side[0] for side in given["position_embeddings"])
        turned = rotated(self._head_normed(qkv, heads, kv_heads), cos, sin)
        q, k, v = (part.transpose(0, 1)[None] for part in (turned[:, :heads], turned[:, heads:], qkv[:, heads + kv_heads :]))
        if cache is not None:
            cache.update(k, v, attention.layer_idx)
        out, _ = mint_attention(
            attention, q, k, v, None, scaling=attention.scaling, sliding_window=self._window, mint_pass=pass_, mint_cache=cache
        )
        return out[0].flatten(1)

    def _head_normed(self, qkv: Tensor, heads: int, kv_heads: int) -> Tensor:
        """Queries and keys [T, heads + kv_heads, width], each head normed where the layer does so (Qwen3)."""
        if not hasattr(self._attention, "q_norm"):
            return qkv[:, : heads + kv_heads]
        q, k = _normed(qkv[:, :heads], self._attention.q_norm), _normed(qkv[:, heads : heads + kv_heads], self._attention.k_norm)
        return torch.cat([q, k], dim=1)


def _window(attention: Any) -> int | None:
    """How far the layer looks back: Mistral says so in its config, Qwen in the layer, Llama looks back to the beginning."""
    found: int | None = attention.config.sliding_window if type(attention).__name__ == "MistralAttention" else None
    return getattr(attention, "sliding_window", found)


def _normed(x: Tensor, norm: Any) -> Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)
