"""Experts of a mixture with LoRA of their own: the function transformers' experts registry calls in place of the stock one.

Every expert computes its rows together, whoever their adapters are, and adds to each pair of row and expert what the row's adapter
has for that expert.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mint_stream.adapter import LayerShape
from mint_stream.kernels import ExpertPairs, Segments, add_expert_lora
from mint_stream.model.passes import Pass

NAME = "mint"
_FLAGS = ("has_gate", "has_bias", "is_transposed", "num_experts", "config")
"""What the registry's decorator leaves on a module of experts."""


@dataclass(frozen=True)
class ExpertSite:
    """Where a module of experts finds the pass in progress."""

    path: str
    current: ContextVar[Pass | None]


def register() -> None:
    """Make `experts_implementation="mint"` known to transformers. Calling it again changes nothing."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, mint_experts)


def is_experts(module: nn.Module) -> bool:
    """Whether this module's forward goes through the experts registry."""
    return all(hasattr(module, flag) for flag in _FLAGS) and isinstance(getattr(module, "down_proj", None), nn.Parameter)


def shapes_of(module: Any) -> dict[str, LayerShape]:
    """(in, out, experts) of its parameters by name."""
    return {name: _shape(getattr(module, name), module.is_transposed) for name in (_first(module), "down_proj")}


def _first(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _shape(weight: Tensor, transposed: bool) -> LayerShape:
    experts, rows, columns = weight.shape
    return (rows, columns, experts) if transposed else (columns, rows, experts)


def mint_experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """hidden_states [T, hidden], top_k_index and top_k_weights [T, experts a row] → [T, hidden]."""
    site: ExpertSite = module.mint_site
    pass_ = site.current.get()
    segments = Segments((), len(hidden_states)) if pass_ is None else pass_.segments
    pairs = ExpertPairs.of(top_k_index, segments, module.num_experts)
    rows = pairs.order // top_k_index.shape[1]
    hidden = _project(module, _first(module), hidden_states[rows], pairs, pass_)
    hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
    hidden = _project(module, "down_proj", hidden, pairs, pass_)
    if module.has_post_expert_norm:
        hidden = module.post_expert_norm(hidden)
    weighted = hidden * top_k_weights.reshape(-1)[pairs.order, None]
    spread = torch.empty_like(weighted).index_copy(0, pairs.order, weighted)
    return spread.view(*top_k_index.shape, -1).sum(1).to(hidden_states.dtype)


def _project(module: Any, name: str, x: Tensor, pairs: ExpertPairs, pass_: Pass | None) -> Tensor:
    """x [pairs, in] → [pairs, out]: each pair through its expert's matrix, then the adapters' parts."""
    weight, bias = getattr(module, name), getattr(module, f"{name}_bias", None) if module.has_bias else None
    parts = [_linear(x[start:end], weight[expert], bias, expert, module.is_transposed) for start, end, expert in pairs.by_expert()]
    y = torch.cat(parts)
    lora = None if pass_ is None else pass_.adapters.site(f"{module.mint_site.path}.{name}")
    if lora is None:
        return y
    if pass_ is not None and pass_.training:
        raise ValueError(f"{module.mint_site.path}.{name}: experts cannot be trained")
    add_expert_lora(x, y, pairs, lora)
    return y


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, expert: int, transposed: bool) -> Tensor:
    return functional.linear(x, weight.t() if transposed else weight, None if bias is None else bias[expert])
