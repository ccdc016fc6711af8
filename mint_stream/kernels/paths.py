"""Which path computes for a tensor: Triton's kernels on CUDA devices, and wherever triton interprets them; torch everywhere else.

Triton is imported here, once, and only where it has something to compute on: a machine without pays nothing and misses nothing.
"""

import importlib
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's own switch, which it reads once, at its import: its kernels then compute on CPU tensors, very slowly."""
_USABLE = (INTERPRETED or torch.cuda.is_available()) and importlib.util.find_spec("triton") is not None


def by_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels compute where this tensor is."""
    return triton_on(tensor.device)


def triton_on(device: torch.device) -> bool:
    """Whether Triton's kernels compute on this device."""
    return _USABLE and (device.type == "cuda" or INTERPRETED)


def triton_module(name: str) -> ModuleType:
    """A module of this package that imports triton. Ask `by_triton` first."""
    return importlib.import_module(f"mint_stream.kernels.{name}")
