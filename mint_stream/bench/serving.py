"""Serving throughput: the engine with many adapters in the batch, the engine with none, and transformers' own generate, side by side.

Tokens per second are output tokens over wall time, prefill included, the same counts on every side.
"""

import asyncio
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from mint_stream.adapter import AdapterBlock, AdapterLayer, AdapterWeights
from mint_stream.app.measure import machine, spread, versions
from mint_stream.engine.batcher import Budgets
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Completion, Generation
from mint_stream.messages.inference import Sampling
from mint_stream.messages.training import LoraSettings
from mint_stream.model.base import ResidentBase, load_base

CHECKED_REQUESTS = 3
CHECKED_TOKENS = 16


class WrongResult(Exception):
    """What was timed computes something else than it should; there is no number to report."""


@dataclass(frozen=True)
class Workload:
    """Prompts of equal length, and the adapters that take turns over them."""

    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int
    adapters: tuple[AdapterWeights, ...]

    def adapter_of(self, request: int) -> int:
        return request % len(self.adapters)


def run(
    base: Path,
    adapters: int = 8,
    requests: int = 32,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    rank: int = 8,
    repeats: int = 5,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Measure on the model directory `base`, each side `repeats` times in turn after one unmeasured round.

    Raises WrongResult when a request's greedy tokens under an adapter are not those of PEFT with that adapter alone.
    """
    number_type: torch.dtype = getattr(torch, dtype)
    resident = load_base(base, dtype=number_type)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=number_type, local_files_only=True).eval()
    tokens = min(40_000, resident.vocabulary_tokens - 100)
    prompts = tuple(tuple((i * 7919 + j * 31) % tokens + 100 for j in range(prompt_tokens)) for i in range(requests))
    work = Workload(prompts, new_tokens, tuple(random_adapter(resident, rank, seed) for seed in range(adapters)))
    rates = asyncio.run(_measure(resident, plain, work, repeats))
    medians = {side: values["median"] for side, values in rates.items()}
    return {
        "workload": {"adapters": adapters, "requests": requests, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rank": rank,
                     "dtype": dtype, "repeats": repeats, "threads": torch.get_num_threads()},
        "tokens_per_s": rates,
        "ratios": {"vs_base_only": medians["ours"] / medians["base_only"], "vs_transformers": medians["ours"] / medians["transformers"]},
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft", "mint-stream"),
    }  # fmt: skip


async def _measure(resident: ResidentBase, plain: Any, work: Workload, repeats: int) -> dict[str, dict[str, float]]:
    blocks = [AdapterBlock.build(weights, resident.adapter_dtype) for weights in work.adapters]
    longest = len(work.prompts[0]) + work.new_tokens
    budgets = Budgets(max_num_seqs=max(2, len(work.prompts)), max_num_batched_tokens=512, max_adapters=max(2, len(blocks)))
    engine = Engine(resident, budgets, context_tokens=longest)
    await engine.start()
    sides: dict[str, list[float]] = {"ours": [], "base_only": [], "transformers": []}
    for repeat in range(repeats + 1):
        ours, ours_s = await _timed(engine, work, blocks)
        _, base_only_s = await _timed(engine, work, [])
        transformers_s = _transformers_s(plain, work)
        if repeat == 0:
            check(plain, work, ours)
            continue
        for side, seconds in zip(sides, (ours_s, base_only_s, transformers_s), strict=True):
            sides[side].append(len(work.prompts) * work.new_tokens / seconds)
    await engine.stop()
    return {side: spread(rates) for side, rates in sides.items()}


async def _timed(engine: Engine, work: Workload, blocks: Sequence[AdapterBlock]) -> tuple[list[Completion], float]:
    sampling = Sampling(max_tokens=work.new_tokens, ignore_eos=True)
    asked = [
        Generation(str(number), prompt, sampling, seed=0, adapter=blocks[work.adapter_of(number)] if blocks else None)
        for number, prompt in enumerate(work.prompts)
    ]
    begun = time.perf_counter()
    completions = await asyncio.gather(*(engine.run(generation) for generation in asked))
    return completions, time.perf_counter() - begun


def _transformers_s(plain: Any, work: Workload) -> float:
    ids = torch.tensor(work.prompts)
    begun = time.perf_counter()
    _generate(plain, ids, work.new_tokens)
    return time.perf_counter() - begun


def _generate(model: Any, ids: torch.Tensor, new_tokens: int) -> list[list[int]]:
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
    )
    return [row[ids.shape[1] :].tolist() for row in out]


def check(plain: Any, work: Workload, ours: Sequence[Completion]) -> None:
    """Greedy tokens of a sample of requests against PEFT with the request's adapter alone."""
    for request in range(min(CHECKED_REQUESTS, len(work.prompts))):
        wanted = _peft_tokens(plain, work.adapters[work.adapter_of(request)], work.prompts[request], min(CHECKED_TOKENS, work.new_tokens))
        got = list(ours[request].tokens[: len(wanted)])
        if got != wanted or len(ours[request].tokens) != work.new_tokens:
            raise WrongResult(f"request {request}: the engine drew {got}, PEFT alone draws {wanted}")


def _peft_tokens(plain: Any, weights: AdapterWeights, prompt: Sequence[int], count: int) -> list[int]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers a deprecated question
        for name, content in weights.to_peft().items():
            Path(folder, name).write_bytes(content)
        adapted = peft.PeftModel.from_pretrained(plain, folder).eval()
        (tokens,) = _generate(adapted, torch.tensor([prompt]), count)
        adapted.unload()
    return tokens


def random_adapter(base: ResidentBase, rank: int, seed: int) -> AdapterWeights:
    """All linear layers but the head, B large enough to change the answers."""
    fresh = AdapterWeights.fresh(LoraSettings(rank=rank, alpha=2.0 * rank), base.linears, seed, base.output_head)
    generator = torch.Generator().manual_seed(seed)
    drawn = {path: torch.randn(layer.B.shape, generator=generator) * 0.02 for path, layer in fresh.layers.items()}
    layers = {path: AdapterLayer(layer.A, drawn[path], layer.scaling) for path, layer in fresh.layers.items()}
    return AdapterWeights(layers=layers, config=fresh.config)
