"""The demo's adapters, made on the spot as PEFT directories: one untrained (answers as the base does), others with random weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from mint_stream.adapter import AdapterLayer, AdapterWeights
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.training import LoraSettings

TRAINED = "household"
"""The adapter that the demo trains."""

APPRENTICE = "apprentice"
"""A smaller adapter that learns of the same commands, in the same passes."""

STRANGERS = {"aria": 4, "bruno": 8, "celia": 16}
"""Adapters that only share the batch, and their ranks."""

NOISE = 0.15
"""Standard deviation of the strangers' B: enough to change answers, too little to break them."""


def write_adapters(base: PoolBase, root: Path) -> dict[str, Path]:
    """PEFT directories by adapter_id, `household` first."""
    linears = linears_of(base)
    fresh = AdapterWeights.fresh(LoraSettings(rank=8, alpha=16), linears, seed=1)
    strangers = {name: noisy(rank, linears) for name, rank in STRANGERS.items()}
    return {name: _write(weights, root / name) for name, weights in {TRAINED: fresh, **strangers}.items()}


def linears_of(base: PoolBase) -> dict[str, tuple[int, int]]:
    """path -> (in, out) of the layers a base-models record counts. For bases whose layers are all alike, as the built-in one's are."""
    return {
        target.pattern.replace("*", str(number)): (target.in_features, target.out_features)
        for target in base.targets
        for number in range(target.count)
    }


def noisy(rank: int, linears: Mapping[str, tuple[int, int]]) -> AdapterWeights:
    """An adapter of all linear layers with random A and B, the same for the same rank."""
    weights = AdapterWeights.fresh(LoraSettings(rank=rank, alpha=2 * rank), linears, seed=rank)
    generator = torch.Generator().manual_seed(rank)
    layers = {path: _with_noise(layer, generator) for path, layer in weights.layers.items()}
    return replace(weights, layers=layers)


def _with_noise(layer: AdapterLayer, generator: torch.Generator) -> AdapterLayer:
    return replace(layer, B=torch.randn(layer.B.shape, generator=generator) * NOISE)


def _write(weights: AdapterWeights, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in weights.to_peft().items():
        (directory / name).write_bytes(content)
    return directory
