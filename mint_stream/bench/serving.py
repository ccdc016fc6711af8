"""Serving throughput: the engine with many adapters in the batch and with none, and what others do with the same work, side by side.

Tokens per second are output tokens over wall time, prefill included, the same counts on every side. No prefix is reused on any.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mint_stream.adapter import AdapterBlock
from mint_stream.app.measure import machine, spread, versions
from mint_stream.bench.decode_profile import decode_profile
from mint_stream.bench.peers import LinearLimit, peft_s, transformers_s, vllm_rates
from mint_stream.bench.workload import Workload, WrongResult, check, random_adapter, workload
from mint_stream.engine.batcher import Budgets
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Completion, Generation
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase, load_base

__all__ = ["Load", "Workload", "WrongResult", "check", "random_adapter", "run"]

MAX_NUM_BATCHED_TOKENS = 512


@dataclass(frozen=True)
class Load:
    """What is asked of every side."""

    adapters: int = 8
    requests: int = 32
    prompt_tokens: int = 64
    new_tokens: int = 64
    rank: int = 8
    dtype: str = "float32"
    repeats: int = 5


def run(base: Path, load: Load, vllm_python: Path | None = None, profile: bool = False) -> dict[str, Any]:
    """Measure on the model directory `base`, each side `repeats` times in turn after one round that is not counted.

    Raises WrongResult when a request's greedy tokens under an adapter are not those of PEFT with that adapter alone.
    """
    dtype: torch.dtype = getattr(torch, load.dtype)
    resident = load_base(base, dtype=dtype)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True).eval()
    work = workload(resident, load.adapters, load.requests, load.prompt_tokens, load.new_tokens, load.rank)
    rates = asyncio.run(_measure(resident, plain, work, load.repeats))
    if vllm_python is not None:
        rates |= vllm_rates(vllm_python, base, work, load.dtype, load.repeats)
    medians = {side: spread(values)["median"] for side, values in rates.items()}
    return {
        "workload": {**asdict(load), "threads": torch.get_num_threads()},
        "tokens_per_s": {side: spread(values) for side, values in rates.items()},
        "ratios": {f"vs_{side}": medians["ours"] / median for side, median in medians.items() if side != "ours"},
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft", "mint-stream"),
        **({"decode_step": decode_profile(resident, work)} if profile else {}),
    }


async def _measure(resident: ResidentBase, plain: Any, work: Workload, repeats: int) -> dict[str, list[float]]:
    blocks = [AdapterBlock.build(weights, resident.adapter_dtype) for weights in work.adapters]
    limit = LinearLimit(resident, work)
    engine = _engine(resident, work)
    await engine.start()
    check(plain, work, (await _timed(engine, work, blocks))[0])
    others: Mapping[str, Callable[[], float]] = {
        "peft": lambda: peft_s(plain, work),
        "transformers": lambda: transformers_s(plain, work),
        "linear_limit": limit.seconds,
    }
    rates: dict[str, list[float]] = {side: [] for side in ("ours", "base_only", *others)}
    for _ in range(repeats + 1):
        for side, given in (("ours", blocks), ("base_only", [])):
            rates[side].append(_rate(work, (await _timed(engine, work, given))[1]))
        for side, seconds in others.items():
            rates[side].append(_rate(work, seconds()))
    await engine.stop()
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
