"""Where the time of a decode step goes, by part."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mint_stream.adapter import AdapterBlock
from mint_stream.bench.workload import Workload
from mint_stream.engine.batcher import Rows
from mint_stream.engine.generation import Generation
from mint_stream.engine.runner import Runner
from mint_stream.engine.sequence import RunningSequence
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase

STEPS = 5
PARTS = {
    "base linears": ("linear_pointwise", "aten::linear", "aten::mm", "mkldnn_linear"),
    "adapters": ("bmm", "addmm", "mint::add_lora"),
    "attention": ("scaled_dot_product", "index_copy", "mint::attend"),
    "norms and activations": ("rms_norm", "rsqrt", "pow", "mean", "silu", "mint::gated"),
}
"""Which operations belong to which part, by a piece of their names; the rest is "the rest"."""


def decode_profile(base: ResidentBase, work: Workload) -> dict[str, float]:
    """Milliseconds of one decode step with all requests running, in all and by part. The profiler itself costs some of them."""
    runner = Runner(base, len(work.prompts), work.prompt_tokens + STEPS + 4)
    sequences = _prefilled(runner, base, work)
    _step(runner, sequences)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            _step(runner, sequences)
    events = [(event.key, event.self_cpu_time_total / 1000 / STEPS) for event in seen.key_averages()]
    found = {part: sum(ms for name, ms in events if _part(name) == part) for part in (*PARTS, "the rest")}
    return {"whole": sum(found.values()), **found}


def _part(name: str) -> str:
    return next((part for part, pieces in PARTS.items() if any(piece in name for piece in pieces)), "the rest")


def _prefilled(runner: Runner, base: ResidentBase, work: Workload) -> list[RunningSequence]:
    blocks = [AdapterBlock.build(weights, base.adapter_dtype) for weights in work.adapters]
    sequences = []
    for key, prompt in enumerate(work.prompts):
        asked = Generation(str(key), prompt, Sampling(max_tokens=work.new_tokens), 0, blocks[work.adapter_of(key)])
        sequences.append(RunningSequence(key, asked, lambda _: "", submitted_at_s=0.0))
        found = runner.cache.take(reuse=False)
        assert found is not None
        sequences[-1].slot = found.slot
        _advance(runner.run([(Rows(key, 0, len(prompt), samples=True), sequences[-1])]))
    return sequences


def _step(runner: Runner, sequences: Sequence[RunningSequence]) -> None:
    _advance(runner.run([(Rows(one.key, len(one.tokens) - 1, 1, samples=True), one) for one in sequences]))


@torch.inference_mode()
def _advance(drawn: Sequence[tuple[RunningSequence, Any]]) -> None:
    for sequence, token in drawn:
        sequence.tokens.append(token or 0)
