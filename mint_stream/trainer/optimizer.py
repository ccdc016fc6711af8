"""The optimizer state of one adapter: flat fp32 masters, gradients and moments, so a step, a norm and a checkpoint are one tensor each."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mint_stream.adapter import AdapterLayer, AdapterWeights
from mint_stream.errors import CorruptObject
from mint_stream.kernels import Dropout, LoraWeights

MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatAdapter:
    """An adapter in training. `masters` and `gradients` are contiguous fp32; layers lie in them in the order of their paths, A before B.

    Kernels compute in the base's dtype: where that is not fp32 they read a copy of the masters and add to gradients of their own dtype,
    which `collect` moves into the fp32 ones after each micro-batch and `refresh` keeps equal to the masters after each step.
    """

    def __init__(self, weights: AdapterWeights, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self._config = weights.config
        self._shapes = {path: (layer.A.shape, layer.B.shape, layer.scaling) for path, layer in sorted(weights.layers.items())}
        parts = [part.reshape(-1) for path in self._shapes for part in (weights.layers[path].A, weights.layers[path].B)]
        self.masters = nn.Parameter(torch.cat(parts).to(device=device, dtype=torch.float32, copy=True))
        self.gradients = torch.zeros_like(self.masters, requires_grad=False)
        self.masters.grad = self.gradients
        narrow = dtype != torch.float32
        self._compute = self.masters.detach().to(dtype) if narrow else self.masters.detach()
        self._compute_gradients = torch.zeros_like(self._compute) if narrow else self.gradients

    def lora_weights(self, dropout: Callable[[str], Dropout | None]) -> dict[str, LoraWeights]:
        """What kernels read and where they add gradients, by module path; `dropout` gives each path its own."""
        slices = self._slices(self._compute_gradients)
        return {
            path: LoraWeights(a, b.t(), scaling, slices[path][0], slices[path][1].t(), dropout(path))
            for path, (a, b, scaling) in self._slices(self._compute).items()
        }

    @property
    def dtype(self) -> torch.dtype:
        """What kernels compute in."""
        return self._compute.dtype

    def collect(self, scale: float = 1.0) -> None:
        """Add the last micro-batch's gradients, which are `scale` times too large, to the fp32 ones."""
        if self._compute_gradients is not self.gradients:
            self.gradients.add_(self._compute_gradients, alpha=1.0 / scale)
            self._compute_gradients.zero_()

    def forget(self) -> None:
        """Gradients are zero again."""
        self.gradients.zero_()
        self._compute_gradients.zero_()

    def refresh(self) -> None:
        """Let kernels see the masters as they are now; gradients are zero again."""
        self.gradients.zero_()
        if self._compute_gradients is not self.gradients:
            self._compute.copy_(self.masters.detach())

    def weights(self) -> AdapterWeights:
        """A copy of the masters as an adapter on the CPU."""
        flat = self.masters.detach().to("cpu", copy=True)
        layers = {path: AdapterLayer(a, b, scaling) for path, (a, b, scaling) in self._slices(flat).items()}
        return AdapterWeights(layers=layers, config=self._config)

    def _slices(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor, float]]:
        views: dict[str, tuple[Tensor, Tensor, float]] = {}
        start = 0
        for path, (a, b, scaling) in self._shapes.items():
            middle = start + a.numel()
            end = middle + b.numel()
            views[path] = (flat[start:middle].view(a), flat[middle:end].view(b), scaling)
            start = end
        return views


class AdapterOptimizer:
    """AdamW over a FlatAdapter. Elementwise on one tensor, so its bits depend on nothing else in the process."""

    def __init__(self, adapter: FlatAdapter, weight_decay: float) -> None:
        self._adapter = adapter
        self._adamw = torch.optim.AdamW([adapter.masters], weight_decay=weight_decay, foreach=False, fused=False)

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to `max_norm` in the 2-norm; gives the norm before, which may not be finite."""
        norm = float(torch.linalg.vector_norm(self._adapter.gradients))
        if math.isfinite(norm) and norm > max_norm:
            self._adapter.gradients.mul_(max_norm / norm)
        return norm

    def step(self, rate: float) -> None:
        """One update at learning rate `rate`; the adapter is refreshed."""
        self._adamw.param_groups[0]["lr"] = rate
        self._adamw.step()
        self._adapter.refresh()

    def moments(self) -> dict[str, Tensor]:
        """`exp_avg`, `exp_avg_sq` (flat fp32, on the CPU) and `step` (a scalar): all that AdamW remembers. Empty before the first step."""
        state = self._adamw.state.get(self._adapter.masters, {})
        return {name: state[name].detach().to("cpu", copy=True) for name in sorted(state)}

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Go on from `moments`. Raises CorruptObject when they do not belong to this adapter."""
        masters = self._adapter.masters
        if set(moments) != {"step", *MOMENTS} or any(moments[name].shape != masters.shape for name in MOMENTS):
            raise CorruptObject(f"optimizer state {sorted(moments)} does not fit an adapter of {masters.numel()} parameters")
        placed = {name: moments[name].to(masters.device).clone() for name in MOMENTS}
        self._adamw.state[masters] = {"step": moments["step"].clone(), **placed}
