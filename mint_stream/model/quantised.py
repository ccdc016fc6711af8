"""Bases whose linear layers are stored in fewer bits: which are served. Their products are their own, adapters are added."""

import importlib.util
from typing import Any

from torch import Tensor, nn

from mint_stream.errors import BaseUnusable, MissingExtra

SERVED = {"torchao": frozenset({"Int8WeightOnlyConfig"})}
"""By the method that made them. Weights alone are narrow: where inputs are rounded too, a row could feel the rows beside it."""


def check_quantised(name: str, config: Any) -> None:
    """Raises BaseUnusable, by name, for what is stored quantized in a way that is not served, and MissingExtra where its library is not."""
    given = getattr(config, "quantization_config", None)
    if not given:
        return
    settings = given if isinstance(given, dict) else given.to_dict()
    method = str(settings.get("quant_method"))
    kinds = _kinds(settings.get("quant_type"))
    if not kinds or kinds - SERVED.get(method, frozenset()):
        served = "; ".join(f"{', '.join(sorted(names))} of {by}" for by, names in SERVED.items())
        raise BaseUnusable(
            f"{name} is stored quantized by {method} ({', '.join(sorted(kinds)) or 'unnamed'}), which is not supported: "
            f"use the original weights, or {served}"
        )
    if importlib.util.find_spec(method) is None:
        raise MissingExtra(f"{name} is stored quantized by {method}, which is not installed: pip install 'mint-stream[quantised]'")


def is_plain(weight: Tensor) -> bool:
    """Whether these are numbers that may be joined, laid out anew and shared: a quantised weight is a tensor of a kind of its own."""
    return type(weight) in (Tensor, nn.Parameter)


def _kinds(given: Any) -> set[str]:
    """torchao names a kind for each group of layers; before it did so, one for all."""
    if isinstance(given, dict):
        return {str(one.get("_type")) for one in given.values() if isinstance(one, dict)}
    return {str(given)} if given else set()
