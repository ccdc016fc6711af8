"""From the last optimizer step to the first token of the new revision at a client that knows only Kafka, and what a full checkpoint takes.

    stepped ─► checkpoint and files durable ─► announce acked ─► event at the client ─► request at a worker ─► applied ─► loaded
            ─► prefilled ─► received

The last step is the trainer's, by the machine's clock; all else is seen at the client, or told by the result it received.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from mint_stream.app.measure import machine, percentiles, versions
from mint_stream.bench.direct import Answer, Asked, Direct
from mint_stream.bench.fleet import Fleet, fleet
from mint_stream.bench.full_checkpoint import Baselines, measure
from mint_stream.bench.stamps import Published, published
from mint_stream.bench.wrong import WrongResult
from mint_stream.messages.adapters import RevisionAnnounced
from mint_stream.messages.inference import InferenceResult, Sampling
from mint_stream.messages.training import Hyperparameters, LoraSettings, TrainingJob
from mint_stream.settings import Settings

STAGES = ("write", "announce", "catalogued", "request", "applied", "loaded", "prefill", "first_token")
"""Of a hand-off, in their order: checkpoint and files durable, the command acknowledged, its event at the client; then the
request on its way, held for the catalog and admitted, waiting for its adapter, queued and prefilled, and its first text on the way back."""
LINES = 64
NEW_TOKENS = 8
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Size:
    """How much: revisions handed over, optimizer steps for each, rank, tokens of the prompt, repetitions of the baselines."""

    revisions: int = 8
    steps: int = 2
    rank: int = 8
    prompt_tokens: int = 64
    repeats: int = 5
    adapter: str = "handed-off"

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the prompt, letters in every vocabulary."""
        return tuple(65 + place * 7 % 50 for place in range(self.prompt_tokens))


@dataclass(frozen=True)
class Sample:
    """One revision at the client. Times are nanoseconds of the machine's monotonic clock."""

    event: RevisionAnnounced
    heard: int
    first_token: int
    result: InferenceResult


async def run(settings: Settings, size: Size) -> dict[str, Any]:
    """Measure. Raises WrongResult when a token came from another revision than announced, or is not what its adapter draws directly."""
    async with fleet(settings, trainer=True) as running:
        samples = await _handed_over(running, size)
        stages = [_stages(one, when) for one, when in zip(samples, published(running.stamps.read_text()), strict=False)]
        found = (await running.client.adapter(size.adapter)).revisions
        revisions = [found[sample.event.number - 1] for sample in samples]
        with Direct(running.base, running.settings, reuse_prefixes=False) as direct:
            alone = await direct.run([Asked(size.prompt, NEW_TOKENS, revision) for revision in revisions])
            check(samples, alone)
        adapters = [running.as_peft(revision) for revision in revisions[-size.repeats :]]
        baselines = measure(running.base, adapters, size.prompt, direct.dtype)
    return _report(size, direct.dtype, stages, alone, baselines)


def check(samples: Sequence[Sample], alone: Sequence[Answer]) -> None:
    """Each sample was answered by what was announced, with the tokens that adapter draws alone. Raises WrongResult."""
    for sample, answer in zip(samples, alone, strict=True):
        served, name = sample.result.served_by, f"{sample.event.adapter_id}@{sample.event.number}"
        if served is None or served.revision_digest != sample.event.digest:
            raise WrongResult(f"{name} was announced as {sample.event.digest[:12]} and answered by {served}: {sample.result.error}")
        if sample.result.tokens != answer.tokens:
            raise WrongResult(f"{name} drew {sample.result.tokens} over Kafka and {answer.tokens} directly")


async def _handed_over(running: Fleet, size: Size) -> list[Sample]:
    """Train one job that publishes every few steps, and ask each revision for its first token as soon as its event is heard."""
    await running.client.pool_base()
    await _streamed(running, size, None)  # makes the client's connections, which are no part of a hand-off
    samples: list[Sample] = []
    async with running.client.revisions(size.adapter) as events:
        await running.client.train(_job(running.room, size))
        async for event in events:
            if isinstance(event, RevisionAnnounced):
                samples.append(await _sampled(running, size, event))
            if len(samples) == size.revisions:
                break
    return samples


async def _sampled(running: Fleet, size: Size, event: RevisionAnnounced) -> Sample:
    heard = time.monotonic_ns()
    first_token, result = await _streamed(running, size, event)
    return Sample(event, heard, first_token, result)


async def _streamed(running: Fleet, size: Size, event: RevisionAnnounced | None) -> tuple[int, InferenceResult]:
    """When the first piece of the answer came, and the whole answer."""
    adapter, after = (f"{size.adapter}@{event.number}", event.catalog_position) if event else (None, None)
    sampling = Sampling(max_tokens=NEW_TOKENS, ignore_eos=True)
    first = 0
    async for part in running.client.stream(size.prompt, adapter, sampling=sampling, timeout_s=PATIENCE_S, after=after):
        first = first or time.monotonic_ns()
        if isinstance(part, InferenceResult):
            return first, part
    raise WrongResult("a stream ended without its result")


def _job(room: Path, size: Size) -> TrainingJob:
    dataset = room / "dataset.jsonl"
    lines = ({"prompt": f"Is {number} even?", "completion": " yes" if number % 2 == 0 else " no"} for number in range(LINES))
    dataset.write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = size.revisions * size.steps
    return TrainingJob(
        job_id=f"handoff-{uuid4().hex[:8]}",
        adapter_id=size.adapter,
        dataset_uri=dataset.as_uri(),
        lora=LoraSettings(rank=size.rank, alpha=2.0 * size.rank),
        hyperparameters=Hyperparameters(steps=steps, batch_size=4, learning_rate=1e-3, schedule="constant", max_length_tokens=128),
        publish_every_steps=size.steps,
        submitted_at_ms=time.time_ns() // 1_000_000,
    )


def _stages(sample: Sample, when: Published) -> dict[str, float]:
    """Milliseconds of each part of one hand-off; `handoff` is their sum."""
    spent = sample.result.timings
    if spent is None:
        raise WrongResult(f"{sample.event.adapter_id}@{sample.event.number} was not answered: {sample.result.error}")
    served = {"request": spent.bus_ms, "applied": spent.admit_ms, "loaded": spent.parked_ms, "prefill": spent.queued_ms + spent.prefill_ms}
    return {
        "handoff": _ms(when.stepped, sample.first_token),
        "write": _ms(when.stepped, when.durable),
        "announce": _ms(when.durable, when.announced),
        "catalogued": _ms(when.announced, sample.heard),
        **served,
        "first_token": _ms(sample.heard, sample.first_token) - sum(served.values()),
    }


def _ms(since: int, until: int) -> float:
    return (until - since) / 1e6


def _report(size: Size, dtype: str, stages: Sequence[dict[str, float]], alone: Sequence[Answer], baselines: Baselines) -> dict[str, Any]:
    parts = {name: percentiles([one[name] for one in stages]) for name in stages[0]}
    handoff, prefill = parts.pop("handoff"), percentiles([answer.prefill_ms for answer in alone])
    cold, warm = percentiles(baselines.cold), percentiles(baselines.warm)
    return {
        "workload": {**asdict(size), "dtype": dtype, "new_tokens": NEW_TOKENS},
        "n": len(stages),
        "handoff_ms": handoff,
        "prefill_ms": prefill,
        "beyond_prefill_ms": handoff["p50"] - prefill["p50"],
        "stages_ms": {name: found["p50"] for name, found in parts.items()},
        "stages_spread_ms": parts,
        "baseline_cold_ms": {**cold, "n": len(baselines.cold)},
        "baseline_warm_ms": {**warm, "n": len(baselines.warm)},
        "baseline_stages_ms": {name: percentiles(values)["p50"] for name, values in baselines.stages.items()},
        "ratios": {"vs_cold": cold["p50"] / handoff["p50"], "vs_warm": warm["p50"] / handoff["p50"]},
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft", "aiokafka", "mint-stream"),
    }
