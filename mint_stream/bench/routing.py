"""What a request pays for coming over Kafka: the same requests to the same engine directly, and to a server of full checkpoints.

One at a time, the share of a request's latency that is not the engine's: bus, resolve, admission and the way back. All at once, the time
until everything is answered, beside a server that loads a merged checkpoint whenever the next request is for another adapter.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mint_stream.app.measure import machine, percentiles, spread, versions
from mint_stream.bench.direct import Answer, Asked, Direct
from mint_stream.bench.fleet import Fleet, fleet
from mint_stream.bench.full_checkpoint import MERGER, SERVER, Script
from mint_stream.bench.wrong import WrongResult
from mint_stream.messages.adapters import Revision
from mint_stream.messages.inference import InferenceResult, Sampling
from mint_stream.settings import Settings

STAGES = ("bus", "admit", "parked", "queued", "prefill", "decode")


@dataclass(frozen=True)
class Size:
    """How much: adapters, requests of a round, tokens in and out, rank, rounds."""

    adapters: int = 4
    requests: int = 12
    prompt_tokens: int = 64
    new_tokens: int = 16
    rank: int = 8
    rounds: int = 5
    name: str = "routed"

    def round(self, number: int, revisions: Sequence[Revision]) -> list[Asked]:
        """The requests of one round, in their order. No two rounds share a prompt, so that no prefix is reused."""
        chance = random.Random(number)
        prompts = [tuple(chance.randrange(65, 115) for _ in range(self.prompt_tokens)) for _ in range(self.requests)]
        shares = [revisions[place % len(revisions)] for place in range(self.requests)]
        chance.shuffle(shares)
        return [Asked(prompt, self.new_tokens, revision) for prompt, revision in zip(prompts, shares, strict=True)]


@dataclass(frozen=True)
class Round:
    """What one round took: seconds of each request one at a time, and of all at once on both sides."""

    served: list[float]
    direct: list[float]
    stages: list[dict[str, float]]
    together_s: float
    naive_s: float
    naive_agrees: float


async def run(settings: Settings, size: Size) -> dict[str, Any]:
    """Measure. Raises WrongResult when an answer is not its revision's, or not what the engine draws directly."""
    async with fleet(settings) as running:
        revisions = [await _published(running, size, seed) for seed in range(size.adapters)]
        with Direct(running.base, running.settings) as direct, ExitStack() as parts:
            merged = _merged(running, revisions, direct.dtype)
            server = parts.enter_context(Script(SERVER))
            rounds = [
                await _round(running, direct, server, merged, size.round(2 * number, revisions), size.round(2 * number + 1, revisions))
                for number in range(size.rounds + 1)
            ]
        return _report(size, direct.dtype, rounds[1:])


async def _published(running: Fleet, size: Size, seed: int) -> Revision:
    name = f"{size.name}-{seed}"
    event = await running.publish(name, size.rank, seed)
    return (await running.client.adapter(name)).revisions[event.number - 1]


@dataclass(frozen=True)
class Merged:
    """Where the full checkpoint of each digest is, and its dtype."""

    folders: dict[str, Path]
    dtype: str


def _merged(running: Fleet, revisions: Sequence[Revision], dtype: str) -> Merged:
    folders = {revision.digest: running.room / "merged" / revision.digest for revision in revisions}
    with Script(MERGER) as merger:
        for revision in revisions:
            merger.ask("adapt", base=str(running.base), adapter=str(running.as_peft(revision)), dtype=dtype)
            merger.ask("merge", into=str(folders[revision.digest]))
    return Merged(folders, dtype)


async def _round(running: Fleet, direct: Direct, server: Script, merged: Merged, asked: Sequence[Asked], crowd: Sequence[Asked]) -> Round:
    """`asked` one at a time over Kafka and directly; `crowd`, with prompts of its own, all at once and by the naive server."""
    alone = await direct.run(asked)
    results = [await _served(running, one) for one in asked]
    check(asked, [result for result, _ in results], alone)
    begun = time.perf_counter()
    together = await asyncio.gather(*(_served(running, one) for one in crowd))
    together_s = time.perf_counter() - begun
    check(crowd, [result for result, _ in together])
    naive_s, drawn = await asyncio.to_thread(_naively, server, merged, crowd)
    return Round(
        served=[seconds for _, seconds in results],
        direct=[answer.seconds for answer in alone],
        stages=[_stages(result, seconds) for result, seconds in results],
        together_s=together_s,
        naive_s=naive_s,
        naive_agrees=statistics.mean(result.tokens == tokens for (result, _), tokens in zip(together, drawn, strict=True)),
    )


async def _served(running: Fleet, asked: Asked) -> tuple[InferenceResult, float]:
    """One request over Kafka by a client, and its seconds."""
    revision = asked.revision
    adapter = f"{revision.adapter_id}@{revision.number}" if revision else None
    begun = time.perf_counter()
    result = await running.client.generate(asked.prompt, adapter, sampling=Sampling(max_tokens=asked.new_tokens, ignore_eos=True))
    return result, time.perf_counter() - begun


def check(asked: Sequence[Asked], results: Sequence[InferenceResult], alone: Sequence[Answer] | None = None) -> None:
    """Each was answered by the revision it asked for, with as many tokens; alone, with those the engine draws. Raises WrongResult."""
    for number, (one, result) in enumerate(zip(asked, results, strict=True)):
        digest = one.revision.digest if one.revision else None
        if result.served_by is None or result.served_by.revision_digest != digest or len(result.tokens or ()) != one.new_tokens:
            raise WrongResult(f"request {number} was answered by {result.served_by} with {result.tokens}: {result.error}")
        if alone is not None and result.tokens != alone[number].tokens:
            raise WrongResult(f"request {number} drew {result.tokens} over Kafka and {alone[number].tokens} directly")


def _stages(result: InferenceResult, seconds: float) -> dict[str, float]:
    """Milliseconds of each stage; `back` is what is left: the result on its way to whoever asked."""
    timings = result.timings.model_dump() if result.timings else {}
    stages = {name: float(timings[f"{name}_ms"]) for name in STAGES}
    return {**stages, "back": seconds * 1000 - sum(stages.values())}


def _naively(server: Script, merged: Merged, asked: Sequence[Asked]) -> tuple[float, list[tuple[int, ...]]]:
    """Seconds until the server of full checkpoints has answered everything in order, and its tokens. It begins with none loaded."""
    loaded, drawn = "", []
    begun = time.perf_counter()
    for one in asked:
        digest = one.revision.digest if one.revision else ""
        if digest != loaded:
            server.ask("load", checkpoint=str(merged.folders[digest]), dtype=merged.dtype)
            loaded = digest
        drawn.append(tuple(server.ask("generate", prompt=list(one.prompt), new_tokens=one.new_tokens)["tokens"]))
    return time.perf_counter() - begun, drawn


def _report(size: Size, dtype: str, rounds: Sequence[Round]) -> dict[str, Any]:
    shares = [1 - statistics.median(one.direct) / statistics.median(one.served) for one in rounds]
    ratios = [one.naive_s / one.together_s for one in rounds]
    stages = [found for one in rounds for found in one.stages]
    return {
        "workload": {**asdict(size), "dtype": dtype},
        "n": len(rounds),
        "share_of_latency": statistics.median(shares),
        "share_spread": spread(shares),
        "ratio_vs_full_checkpoint_server": statistics.median(ratios),
        "ratio_spread": spread(ratios),
        "served_ms": percentiles([seconds * 1000 for one in rounds for seconds in one.served]),
        "direct_ms": percentiles([seconds * 1000 for one in rounds for seconds in one.direct]),
        "stages_ms": {name: statistics.median(found[name] for found in stages) for name in stages[0]},
        "together_s": spread([one.together_s for one in rounds]),
        "full_checkpoint_server_s": spread([one.naive_s for one in rounds]),
        "full_checkpoint_server_agrees": statistics.mean(one.naive_agrees for one in rounds),
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft", "aiokafka", "mint-stream"),
    }
