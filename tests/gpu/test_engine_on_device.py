"""The whole engine on a real device: pages, Triton's kernels, graphs. It computes what the path for CPUs computes."""

import asyncio
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mint_stream.adapter import AdapterBlock
from mint_stream.app.serve_parts import chosen_device, kv_cache_bytes
from mint_stream.cache.device import DeviceTier
from mint_stream.engine.batcher import Budgets
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Completion, Generation
from mint_stream.engine.graphs import CudaGraphs
from mint_stream.engine.paged_cache import PagedCache
from mint_stream.engine.runner import Runner
from mint_stream.kernels import Segments
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.model.passes import NO_ADAPTERS, Pass, Span
from mint_stream.settings import ServingSettings, Settings
from tests.engine.test_parity import _forced, _sequence
from tests.factories import random_weights, tiny_base

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the engine's path for devices runs on a CPU only"),
]
KINDS = ("llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3", "deepseek_v32", "qwen3_next")
FUSED = ("llama", "qwen3", "mistral")
"""Kinds whose decode steps have graphs."""
BUDGETS = Budgets(max_num_seqs=5, max_num_batched_tokens=29, max_adapters=3)
PLENTY = 1 << 26
ATOL = 1e-3


def _base(tmp_path: Path, kind: str, device: str) -> ResidentBase:
    path = tmp_path / "base"
    return load_base(path if path.exists() else tiny_base(path, kind), dtype=torch.float32, device=device)


def _blocks(base: ResidentBase) -> list[AdapterBlock | None]:
    linears = {path: shape for path, shape in base.linears.items() if path != base.output_head}
    found = [AdapterBlock.build(random_weights(linears, rank=rank, seed=rank), base.adapter_dtype, base.device) for rank in (2, 5, 33)]
    return [*found, None]


def _logits(base: ResidentBase, runner: Runner) -> dict[tuple[int, int], Tensor]:
    blocks = _blocks(base)
    tokens = [[(13 * key + 7 * at) % 256 for at in range(14 + 5 * key)] for key in range(8)]
    sequences = [(_sequence(key, ids, 6 + 3 * key, blocks[key % 4]), ids) for key, ids in enumerate(tokens)]
    with torch.inference_mode():
        return {(key, position): row.float().cpu() for key, position, row in _forced(runner, BUDGETS, sequences)}


def _alike(one: dict[tuple[int, int], Tensor], other: dict[tuple[int, int], Tensor]) -> None:
    assert one.keys() == other.keys()
    for place, row in one.items():
        torch.testing.assert_close(other[place], row, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_on_the_device_the_logits_it_has_on_a_cpu(kind: str, tmp_path: Path) -> None:
    on_cpu = _logits(base := _base(tmp_path, kind, "cpu"), Runner(base, 5, 64))
    on_device = _logits(base := _base(tmp_path, kind, "cuda"), Runner(base, 5, 64, PLENTY))
    _alike(on_cpu, on_device)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", FUSED)
def test_replayed_graphs_give_the_logits_of_steps_that_are_asked_for(kind: str, tmp_path: Path) -> None:
    base = _base(tmp_path, kind, "cuda")
    asked = _logits(base, Runner(base, 5, 64, PLENTY))
    runner = Runner(base, 5, 64, PLENTY, CudaGraphs())
    runner.warm_up()
    replayed = _logits(base, runner)
    assert runner.decode_graphs is not None and runner.decode_graphs.replayed > 5
    _alike(asked, replayed)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_host_waits_for_nothing_between_a_step_and_its_logits(tmp_path: Path) -> None:
    base = _base(tmp_path, "llama", "cuda")
    runner = Runner(base, 4, 64, PLENTY, CudaGraphs())
    runner.warm_up()
    assert runner.decode_graphs is not None and isinstance(runner.cache, PagedCache)
    spans = []
    for row in range(3):
        found = runner.cache.take(tokens=[1, 2])
        assert found is not None
        spans.append(Span(row, row + 1, 0, found.slot))
    pass_ = Pass((1, 2, 3), tuple(spans), (0, 1, 2), Segments((), 3), NO_ADAPTERS)
    with torch.inference_mode():
        runner.decode_graphs.logits(pass_)
        torch.cuda.set_sync_debug_mode("error")
        try:
            logits = runner.decode_graphs.logits(pass_)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert logits is not None and bool(logits.isfinite().all())


async def _answers(base: ResidentBase, kv_bytes: int | None) -> list[Completion]:
    engine, blocks = Engine(base, BUDGETS, context_tokens=96, kv_cache_bytes=kv_bytes), _blocks(base)
    await engine.start()
    asked = [
        Generation(str(key), tuple(f"a prompt of {key}".encode()), Sampling(max_tokens=12, ignore_eos=True), key, blocks[key % 4])
        for key in range(12)
    ]
    answers = await asyncio.gather(*(engine.run(one) for one in asked))
    again = await asyncio.gather(*(engine.run(one) for one in asked))
    await engine.stop()
    assert [one.tokens for one in answers] == [one.tokens for one in again], "whoever shares the steps"
    return answers


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
async def test_an_engine_on_the_device_says_what_an_engine_on_a_cpu_says(kind: str, tmp_path: Path) -> None:
    expected = await _answers(_base(tmp_path, kind, "cpu"), None)
    base = _base(tmp_path, kind, "cuda")
    got = await _answers(base, kv_cache_bytes(base, ServingSettings()))
    assert [one.tokens for one in got] == [one.tokens for one in expected]


def test_a_gpu_that_is_there_is_chosen_and_its_free_memory_is_shared_out(tmp_path: Path) -> None:
    assert chosen_device(Settings()).type == "cuda" and chosen_device(Settings(device="cuda")).type == "cuda"
    base = _base(tmp_path, "llama", "cuda")
    assert kv_cache_bytes(base, ServingSettings(kv_cache_bytes=1 << 22)) == 1 << 22
    found, (free, _) = kv_cache_bytes(base, ServingSettings()), torch.cuda.mem_get_info()
    assert found is not None and 0 < found < free


async def test_a_block_is_placed_by_one_copy_that_changes_no_bit_and_keeps_its_alignment() -> None:
    block = AdapterBlock.build(random_weights(rank=3), torch.bfloat16)
    lease = await DeviceTier(1 << 24, "cuda:0").place(block)
    assert lease.block.flat.is_cuda and torch.equal(lease.block.flat.cpu(), block.flat)
    assert all(side.data_ptr() % 16 == 0 for layer in lease.block.layers.values() for side in (layer.A, layer.Bt))
    lease.release()
