"""Serving throughput: the engine with many adapters in the batch and with none, and what others do with the same work, side by side.

Tokens per second are output tokens over wall time, prefill included, the same counts on every side. No prefix is reused on any.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from mint_stream.adapter import AdapterBlock
from mint_stream.app.measure import machine, spread, versions
from mint_stream.bench.decode_profile import decode_profile
from mint_stream.bench.peers import PEERS, Peers, vllm_rates
from mint_stream.bench.workload import Load, Workload, check, random_adapter, workload
from mint_stream.bench.wrong import WrongResult
from mint_stream.engine.batcher import Budgets
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Completion, Generation
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase, load_base

__all__ = ["Load", "Workload", "WrongResult", "check", "random_adapter", "run"]

T = TypeVar("T")

MAX_NUM_BATCHED_TOKENS = 512


def run(base: Path, load: Load, vllm_python: Path | None = None, profile: bool = False) -> dict[str, Any]:
    """Measure on the model directory `base`, each side `repeats` times in turn after one round that is not counted.

    Raises WrongResult when a request's greedy tokens under an adapter are not those of PEFT with that adapter alone.
    """
    scene = _in_a_thread_that_ends(lambda: _Scene.of(base, load))
    rates = asyncio.run(_measure(scene, Peers(base, load), load.repeats))
    if vllm_python is not None:
        rates |= vllm_rates(vllm_python, base, scene.work, load.dtype, load.repeats)
    medians = {side: spread(values)["median"] for side, values in rates.items()}
    return {
        "workload": {**asdict(load), "threads": torch.get_num_threads()},
        "tokens_per_s": {side: spread(values) for side, values in rates.items()},
        "ratios": {f"vs_{side}": medians["ours"] / median for side, median in medians.items() if side != "ours"},
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft", "mint-stream"),
        **({"decode_step": _in_a_thread_that_ends(lambda: decode_profile(scene.resident, scene.work))} if profile else {}),
    }


@dataclass(frozen=True)
class _Scene:
    """What our side needs."""

    resident: ResidentBase
    work: Workload
    blocks: tuple[AdapterBlock, ...]

    @classmethod
    def of(cls, base: Path, load: Load) -> "_Scene":
        resident = load_base(base, dtype=getattr(torch, load.dtype))
        work = workload(resident, load)
        return cls(resident, work, tuple(AdapterBlock.build(weights, resident.adapter_dtype) for weights in work.adapters))


def _in_a_thread_that_ends(what: Callable[[], T]) -> T:
    """Its OpenMP threads end with it, so that the engine's are the only ones: see Peers."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(what).result()


async def _measure(scene: _Scene, peers: Peers, repeats: int) -> dict[str, list[float]]:
    engine = _engine(scene.resident, scene.work)
    await engine.start()
    try:
        peers.check([completion.tokens for completion in (await _timed(engine, scene.work, scene.blocks))[0]])
        rates: dict[str, list[float]] = {side: [] for side in ("ours", "base_only", *PEERS)}
        for _ in range(repeats + 1):
            for side, given in (("ours", scene.blocks), ("base_only", ())):
                rates[side].append(_rate(scene.work, (await _timed(engine, scene.work, given))[1]))
            for side in PEERS:
                rates[side].append(_rate(scene.work, peers.seconds(side)))
    finally:
        await engine.stop()
        peers.stop()
    return {side: values[1:] for side, values in rates.items()}


def _engine(resident: ResidentBase, work: Workload) -> Engine:
    longest = work.prompt_tokens + work.new_tokens
    most = max(2, len(work.prompts))
    budgets = Budgets(
        max_num_seqs=most, max_num_batched_tokens=max(MAX_NUM_BATCHED_TOKENS, most + 1), max_adapters=max(2, len(work.adapters))
    )
    return Engine(resident, budgets, context_tokens=longest, reuse_prefixes=False)


def _rate(work: Workload, seconds: float) -> float:
    return len(work.prompts) * work.new_tokens / seconds


async def _timed(engine: Engine, work: Workload, blocks: Sequence[AdapterBlock]) -> tuple[list[Completion], float]:
    sampling = Sampling(max_tokens=work.new_tokens, ignore_eos=True)
    asked = [
        Generation(str(number), prompt, sampling, seed=0, adapter=blocks[work.adapter_of(number)] if blocks else None)
        for number, prompt in enumerate(work.prompts)
    ]
    begun = time.perf_counter()
    completions = await asyncio.gather(*(engine.run(generation) for generation in asked))
    return completions, time.perf_counter() - begun
