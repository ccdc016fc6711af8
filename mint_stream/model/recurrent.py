"""Layers that keep a state a sequence (linear attention): spans of equal length side by side, without padding, their states written back.

The stock layer takes one row of tokens for one sequence. So a pass is taken apart for it: spans of as many rows, all at their beginning
or none, are a batch [spans, rows, hidden], which is also the row space of the layer's LoRA sites. What a span leaves behind goes to its
slot; a span at its beginning reads nothing from there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import LinearAttentionLayer

from mint_stream.model.lora_linear import LoraSites
from mint_stream.model.passes import KeyValues, Pass, Span

LAYERS = frozenset({"Qwen3NextGatedDeltaNet"})
"""Classes whose source was read and that were held to PEFT."""


def install(model: nn.Module, sites: LoraSites) -> None:
    """Let the layers of these classes compute packed passes. Changes no weight and no path."""
    for module in model.modules():
        if type(module).__name__ in LAYERS:
            stock = module.forward.stock if isinstance(module.forward, PackedRecurrence) else module.forward
            module.forward = PackedRecurrence(stock, int(module.layer_idx), sites)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Group:
    """Spans computed side by side: `rows` of the pass in their order, `pass_` with the segments of those."""

    spans: tuple[Span, ...]
    rows: tuple[int, ...]
    pass_: Pass

    @property
    def begins(self) -> bool:
        """Whether its sequences begin here."""
        return self.spans[0].position == 0


def grouped(pass_: Pass) -> tuple[Group, ...]:
    """The spans of a pass by how many rows they have, those that begin apart from those that go on."""
    alike: dict[tuple[int, bool], list[Span]] = {}
    for span in pass_.spans:
        alike.setdefault((span.rows, span.position == 0), []).append(span)
    return tuple(_group(pass_, tuple(spans)) for spans in alike.values())


def _group(pass_: Pass, spans: tuple[Span, ...]) -> Group:
    rows = tuple(row for span in spans for row in range(span.start, span.end))
    return Group(spans, rows, replace(pass_, segments=pass_.segments.select(rows), scratch={}))


class PackedRecurrence:
    """The forward of one recurrent layer, for packed passes."""

    def __init__(self, stock: Callable[..., Tensor], layer: int, sites: LoraSites) -> None:
        self.stock = stock
        self._layer, self._sites = layer, sites

    def __call__(
        self, hidden_states: Tensor, *, mint_pass: Pass | None = None, mint_cache: KeyValues | None = None, **given: Any
    ) -> Tensor:
        """hidden_states [1, T, hidden] → the same shape."""
        if mint_pass is None:
            return self.stock(hidden_states, **given)
        groups = mint_pass.shared("recurrent groups", lambda: grouped(mint_pass))
        parts = [self._compute(hidden_states[0], group, mint_cache) for group in groups]
        place = torch.tensor([row for group in groups for row in group.rows], device=hidden_states.device)
        return torch.cat(parts)[place.argsort()][None]

    def _compute(self, x: Tensor, group: Group, cache: KeyValues | None) -> Tensor:
        """[rows of the group, hidden]"""
        batch = x[torch.tensor(group.rows, device=x.device)].view(len(group.spans), -1, x.shape[1])
        states = None if cache is None else States(cache, group, self._layer)
        with self._sites.applied(group.pass_):
            y = self.stock(batch, cache_params=states)
        if states is not None:
            states.write_back()
        return y.flatten(0, 1)


class States(Cache):  # type: ignore[misc]  # transformers ships no types
    """What a recurrent layer knows of the sequences of one group: read from their slots, unless they begin, and written back after."""

    def __init__(self, cache: KeyValues, group: Group, layer: int) -> None:
        super().__init__(layers=[])
        self._cache, self._layer = cache, layer
        self._slots = torch.tensor([span.slot for span in group.spans])
        self._held = LinearAttentionLayer()
        self.layers = {layer: self._held}
        if not group.begins:
            self._held.conv_states[0], self._held.recurrent_states[0] = (cache.state((layer, name))[self._slots] for name in _NAMES)
            self._held.is_conv_states_initialized[0] = self._held.is_recurrent_states_initialized[0] = True
            self._held.has_previous_state[0] = True
            self._held.conv_kernel_size[0] = self._held.conv_states[0].shape[-1]

    def write_back(self) -> None:
        """Put the states where the next pass finds them."""
        for name, state in zip(_NAMES, (self._held.conv_states[0], self._held.recurrent_states[0]), strict=True):
            self._cache.state((self._layer, name), like=state)[self._slots] = state


_NAMES = ("convolution", "recurrence")
