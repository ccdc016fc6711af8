"""The LoRA sites of a base: linear layers that add to each row what the row's own adapter says, in serving and in training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mint_stream.kernels import Segments, add_lora_slices, lora_with_gradients
from mint_stream.model.latent import is_latent
from mint_stream.model.passes import Pass
from mint_stream.model.product import Product


class LoraLinear(nn.Linear):
    """A linear layer of the base, its weight shared with the layer it replaces, that looks up the pass in progress."""

    def __init__(self, replaced: nn.Linear, path: str, current: ContextVar[Pass | None], anchor: Tensor, selects_rows: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = replaced.in_features, replaced.out_features
        self.weight, self.bias = replaced.weight, replaced.bias
        self.path, self.selects_rows = path, selects_rows
        self.reads_cache = False
        """Its rows are all cached ones, not the pass's tokens."""
        self._current, self._anchor = current, anchor
        self._product = Product([self])

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]: the base's answer, plus the adapter's in rows that have one."""
        flat = x.reshape(-1, self.in_features)
        pass_ = self._current.get()
        if pass_ is None or pass_.training:
            y = self._with_gradients(flat, pass_)
        else:
            y = self._product(flat)
            if (weights := pass_.adapters.slices((self.path,))) is not None:
                add_lora_slices(flat, (y,), self.row_space(pass_), weights)
        return y.view(*x.shape[:-1], self.out_features)

    def row_space(self, pass_: Pass) -> Segments:
        """Whose adapter each row of this layer's input asks for."""
        if self.reads_cache:
            return pass_.cached_segments
        return pass_.selected_segments if self.selects_rows else pass_.segments

    def _with_gradients(self, flat: Tensor, pass_: Pass | None) -> Tensor:
        y = functional.linear(flat, self.weight, self.bias)
        weights = None if pass_ is None else pass_.adapters.site(self.path)
        return y if pass_ is None or weights is None else lora_with_gradients(flat, y, self.row_space(pass_), weights, self._anchor)


class LoraSites:
    """All LoRA sites of one model. Installing them changes no weight and no module path."""

    def __init__(self, model: nn.Module, paths: Mapping[str, object], head: str | None = "lm_head") -> None:
        """Replace the linear layers at `paths`. `head` names the one whose rows are the pass's selected rows."""
        self.current: ContextVar[Pass | None] = ContextVar("mint_pass", default=None)
        self.paths = frozenset(paths) - {head}
        """All but the head, whose rows are no pass's."""
        anchor = torch.zeros((), requires_grad=True)
        for path in paths:
            parent, _, name = path.rpartition(".")
            replaced = cast(nn.Linear, model.get_submodule(path))
            setattr(model.get_submodule(parent), name, LoraLinear(replaced, path, self.current, anchor, path == head))
        for module in model.modules():
            if is_latent(module) and isinstance(expanding := module.kv_b_proj, LoraLinear):
                expanding.reads_cache = True

    @contextmanager
    def applied(self, pass_: Pass) -> Iterator[None]:
        """Within this block, forward passes (and recomputation in backward ones) use this pass's adapters. Per thread."""
        token = self.current.set(pass_)
        try:
            yield
        finally:
            self.current.reset(token)
