"""Witnesses with a model: an answer is what the base says under the adapter, held against an engine asked alone that reuses nothing."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from mint_stream.adapter import AdapterBlock, AdapterWeights, LayerShape
from mint_stream.bench.witness import PROMPT, WITNESS_TOKENS
from mint_stream.bench.workload import drawn_adapter
from mint_stream.engine.budgets import Budgets
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Generation, GenerationEngine
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase

RANK = 2
STRENGTH = 10.0
"""Times what a fresh adapter of the benchmarks is, so that each says something else."""
CONTEXT_TOKENS = 128


class Models:
    """Engines of one resident base. Use as a context: the engine that is asked for testimony runs within it."""

    def __init__(self, base: ResidentBase) -> None:
        self._base = base
        self.layers: Mapping[str, LayerShape] = base.layers
        self._alone = Engine(base, Budgets(), CONTEXT_TOKENS, reuse_prefixes=False)
        self._one = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._alone.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._alone.stop()

    def base(self, pool: str) -> PoolBase:
        """The resident base."""
        base = self._base
        return PoolBase(
            pool=pool,
            base_digest=base.digest,
            architecture=base.architecture,
            context_tokens=CONTEXT_TOKENS,
            vocabulary_tokens=base.vocabulary_tokens,
            targets=base.targets(),
            max_rank=RANK,
        )

    def made(self, seed: int) -> AdapterWeights:
        """Random numbers that are heard."""
        drawn = drawn_adapter(self._base.linears, RANK, seed)
        layers = {path: replace(layer, B=layer.B * STRENGTH) for path, layer in drawn.layers.items()}
        return AdapterWeights(layers=layers, config=drawn.config)

    def engine(self) -> GenerationEngine:
        """As a serving worker has it: batches, and prompts that begin alike are not computed again."""
        return Engine(self._base, Budgets(max_num_seqs=8, max_adapters=4), CONTEXT_TOKENS)

    async def testimony(self, weights: AdapterWeights) -> tuple[int, ...]:
        """What the adapter says when nobody else is there."""
        block = AdapterBlock.build(weights, self._base.adapter_dtype, self._base.device)
        name = hashlib.sha256(weights.digest.encode()).hexdigest()
        sampling = Sampling(max_tokens=WITNESS_TOKENS, ignore_eos=True)
        async with self._one:
            return (await self._alone.run(Generation(name, tuple(PROMPT.encode()), sampling, seed=0, adapter=block))).tokens
