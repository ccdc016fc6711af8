"""The engine's path for devices, on a CPU: pages, tables, adapters where they are. It computes what the path for CPUs does."""

import asyncio
from pathlib import Path

import pytest
import torch

from mint_stream.adapter import AdapterBlock
from mint_stream.engine.batcher import Budgets
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Completion, Generation
from mint_stream.engine.paged_cache import PagedCache
from mint_stream.engine.runner import Runner
from mint_stream.errors import EngineFailed
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase, load_base
from tests.engine.test_parity import _forced, _sequence
from tests.factories import random_weights, tiny_base

KINDS = ("llama", "mistral", "gpt_oss", "gemma2", "qwen3_moe", "deepseek_v3", "deepseek_v32", "qwen3_next")
"""Grouped heads; sliding windows; sinks; softcap; experts; latents; chosen latents; a hybrid with states."""
PLENTY = 1 << 24
BUDGETS = Budgets(max_num_seqs=5, max_num_batched_tokens=29, max_adapters=3)


def _blocks(base: ResidentBase) -> list[AdapterBlock | None]:
    return [AdapterBlock.build(random_weights(base.linears, rank=rank, seed=rank)) for rank in (2, 5)] + [None]


def _logits(base: ResidentBase, kv_cache_bytes: int | None) -> dict[tuple[int, int], torch.Tensor]:
    runner = Runner(base, slots=5, slot_tokens=64, kv_cache_bytes=kv_cache_bytes)
    assert isinstance(runner.cache, PagedCache) == (kv_cache_bytes is not None)
    blocks = _blocks(base)
    tokens = [[(13 * key + 7 * at) % 256 for at in range(14 + 5 * key)] for key in range(8)]
    sequences = [(_sequence(key, ids, 6 + 3 * key, blocks[key % 3]), ids) for key, ids in enumerate(tokens)]
    return {(key, position): row for key, position, row in _forced(runner, BUDGETS, sequences)}


@pytest.mark.parametrize("kind", KINDS)
def test_pages_give_every_row_the_logits_that_slots_give_it(kind: str, tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base", kind), dtype=torch.float32)
    slots, pages = _logits(base, None), _logits(base, PLENTY)
    assert slots.keys() == pages.keys()
    for place, row in slots.items():
        torch.testing.assert_close(pages[place], row, atol=1e-4, rtol=1e-4)


def _asked(blocks: list[AdapterBlock | None], key: int) -> Generation:
    sampling = Sampling(max_tokens=4 + key % 5, ignore_eos=True, temperature=key % 2 * 0.7)
    return Generation(str(key), tuple(f"a prompt of {key}".encode()), sampling, seed=key, adapter=blocks[key % 3])


async def _answers(base: ResidentBase, kv_cache_bytes: int | None) -> list[Completion]:
    engine, blocks = Engine(base, BUDGETS, context_tokens=48, kv_cache_bytes=kv_cache_bytes), _blocks(base)
    await engine.start()
    answers = await asyncio.gather(*(engine.run(_asked(blocks, key)) for key in range(12)))
    await engine.stop()
    return answers


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
async def test_an_engine_with_little_memory_answers_all_alike_one_after_the_other(kind: str, tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base", kind), dtype=torch.float32)
    runner = Runner(base, 5, 48, PLENTY)
    runner.warm_up()
    page_bytes = runner.cache.page_bytes
    for pages in (3, 5):
        assert [one.tokens for one in await _answers(base, pages * page_bytes)] == [one.tokens for one in await _answers(base, None)]


async def test_memory_for_less_than_the_context_stops_the_worker_at_its_start(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base"), dtype=torch.float32)
    with pytest.raises(EngineFailed, match="MINT_SERVING__KV_CACHE_BYTES"):
        await Engine(base, BUDGETS, kv_cache_bytes=1000).start()


async def test_full_pages_of_the_same_beginning_are_read_by_their_maker_alone(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base"), dtype=torch.float32)
    engine, blocks = Engine(base, BUDGETS, kv_cache_bytes=PLENTY), _blocks(base)
    await engine.start()
    prompt, sampling = tuple(b"the same beginning, longer than two pages"), Sampling(max_tokens=4, ignore_eos=True)
    for block in blocks:
        first, again = [await engine.run(Generation("r", prompt, sampling, seed=0, adapter=block)) for _ in range(2)]
        assert (first.reused_tokens, again.reused_tokens) == (0, 32) and first.tokens == again.tokens
    await engine.stop()
