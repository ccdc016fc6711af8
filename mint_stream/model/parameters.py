"""Bare parameters that PEFT can adapt (`target_parameters`): a router's matrix and the fused weights of experts, found and given LoRA."""

from contextvars import ContextVar
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mint_stream.adapter import LayerShape
from mint_stream.kernels import add_lora
from mint_stream.model.experts import ExpertSite, is_experts, shapes_of
from mint_stream.model.passes import Pass

_CASTS = (Tensor.type, Tensor.to, Tensor.float, Tensor.contiguous)


def bare_parameters(model: nn.Module) -> dict[str, LayerShape]:
    """(in, out, experts) of every bare parameter an adapter could target, by full path. experts is 1 for a router's matrix."""
    found: dict[str, LayerShape] = {}
    for path, module in model.named_modules():
        if is_experts(module):
            found |= {f"{path}.{name}": shape for name, shape in shapes_of(module).items()}
        elif is_router(module):
            experts, width = module.weight.shape
            found[f"{path}.weight"] = (width, experts, 1)
    return found


def install(model: nn.Module, current: ContextVar[Pass | None]) -> None:
    """Let every such parameter look up the pass in progress. Changes no weight and no path; again, for another `current`, replaces it."""
    for path, module in model.named_modules():
        if is_experts(module):
            module.mint_site = ExpertSite(path, current)
        elif is_router(module):
            module.weight = RouterWeight(module.weight, f"{path}.weight", current)


def is_router(module: nn.Module) -> bool:
    """Whether this chooses experts by `linear(rows, self.weight)` and nothing else: found out by having it choose once."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not hasattr(module, "top_k") or isinstance(module, nn.Linear):
        return False
    if len(signature(module.forward).parameters) > 1:
        return False
    seen = _Seen(weight)
    with torch.no_grad(), seen:
        module(weight.new_zeros(1, weight.shape[1]))
    return seen.linear


class _Seen(torch.overrides.TorchFunctionMode):
    """Whether `linear` was called with this weight, perhaps cast."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._shape = weight.shape
        self.linear = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.linear |= func is functional.linear and args[1].shape == self._shape
        return func(*args, **(kwargs or {}))


class RouterWeight(nn.Parameter):
    """A router's matrix [experts, in], sharing its storage with the one it replaces: `linear` with it adds what each row's adapter says."""

    path: str
    current: ContextVar[Pass | None]

    def __new__(cls, replaced: Tensor, path: str, current: ContextVar[Pass | None]) -> "RouterWeight":
        made: RouterWeight = torch.Tensor._make_subclass(cls, replaced.data, False)
        made.path, made.current = path, current
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func is functional.linear and isinstance(args[1], cls):
            return args[1].adapted(args[0], result)
        if func in _CASTS and isinstance(args[0], cls):
            return cls(result, args[0].path, args[0].current)
        return result

    def adapted(self, x: Tensor, y: Tensor) -> Tensor:
        """y [rows, experts] plus the adapters' part of x [rows, in]. Not in training, where no adapter has this site."""
        pass_ = self.current.get()
        weights = None if pass_ is None else pass_.adapters.site(self.path)
        if pass_ is None or weights is None:
            return y
        some = next(lora.A for lora in weights.at if lora is not None)
        delta = y.new_zeros(y.shape, dtype=some.dtype)  # routers may choose in float32 where adapters are narrower
        add_lora(x.to(some), delta, pass_.segments, weights)
        return y + delta
