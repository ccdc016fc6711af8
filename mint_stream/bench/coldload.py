"""Cold loads from a store that is far away: one load however many wait, loads that overlap, and a running batch that does not notice.

One round: the same adapters loaded one at a time and all at once; requests for one cold adapter; steps of a running batch, alone and
while all load.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mint_stream.adapter import AdapterBlock
from mint_stream.app.measure import machine, spread, versions
from mint_stream.bench.many_tensors import many_tensors
from mint_stream.bench.serving_scene import StepClock, Tiers, answer, loader_of
from mint_stream.bench.workload import drawn_adapter
from mint_stream.bench.wrong import WrongResult
from mint_stream.cache import DiskTier, Loader
from mint_stream.engine.batcher import Budgets
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Generation
from mint_stream.messages.adapters import Revision
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.store.delayed import DelayedStore

PROMPT = tuple(range(100, 116))
TARGETS = ("q_proj", "v_proj")
"""What PEFT adapts when nothing else is said."""
TIERS = Tiers(device_bytes=2**30, host_bytes=2**30, disk_bytes=2**32)


@dataclass(frozen=True)
class ColdLoad:
    """What is loaded, how far away it is, and what runs meanwhile."""

    adapters: int = 64
    requests: int = 64
    """For one cold adapter."""
    rank: int = 8
    latency_ms: float = 20.0
    running: int = 8
    steps: int = 40
    """Of the running batch, at least, on either side of the comparison."""
    tensors: int = 20_000
    """Of one more adapter, which is all tiny tensors."""
    repeats: int = 5


@dataclass(frozen=True)
class _Scene:
    base: ResidentBase
    load: ColdLoad
    room: Path
    store: DelayedStore
    revisions: Sequence[Revision]
    blocks: Sequence[AdapterBlock]


def run(base_path: Path, load: ColdLoad) -> dict[str, Any]:
    """Measure on the model directory `base_path`. Raises WrongResult when a load brings other numbers than were published."""
    base = load_base(base_path, dtype=torch.float32)
    with tempfile.TemporaryDirectory(prefix="mint-coldload-") as room:
        scene = _published(base, load, Path(room))
        rounds = asyncio.run(_measured(scene))
    overlaps = [one["alone_s"] / one["together_s"] for one in rounds]
    steps = [one["step_loading_s"] / one["step_alone_s"] for one in rounds]
    return {
        "workload": asdict(load) | {"adapter_bytes": scene.blocks[0].nbytes, "parallelism": TIERS.parallelism},
        "loads_for_one_adapter": max(int(one["loads"]) for one in rounds),
        "overlap_ratio": statistics.median(overlaps),
        "step_time_ratio_while_loading": statistics.median(steps),
        "spread": {"overlap_ratio": spread(overlaps), "step_time_ratio_while_loading": spread(steps)},
        "errors": sum(int(one["errors"]) for one in rounds),
        "one_at_a_time_s": spread([one["alone_s"] for one in rounds]),
        "all_at_once_s": spread([one["together_s"] for one in rounds]),
        "step_ms": {side: spread([one[f"step_{side}_s"] * 1e3 for one in rounds]) for side in ("alone", "loading")},
        "many_tensors": many_tensors(load.tensors, load.repeats),
        "machine": machine(),
        "versions": versions("torch", "transformers", "mint-stream"),
    }


def _published(base: ResidentBase, load: ColdLoad, room: Path) -> _Scene:
    store = DelayedStore(room.as_uri(), load.latency_ms / 1e3, {"sync": False})
    linears = {path: shape for path, shape in base.linears.items() if path.endswith(TARGETS)}
    adapters = [drawn_adapter(linears, load.rank, seed) for seed in range(load.adapters)]
    near = DelayedStore(room.as_uri(), 0.0, {"sync": False})
    revisions = []
    for number, weights in enumerate(adapters):
        manifest = near.put_revision(
            weights.to_peft(), digest=weights.digest, base_digest=base.digest, targets=weights.targets(), parameters=weights.parameters
        )
        revisions.append(
            Revision(
                adapter_id=f"cold-{number}",
                number=1,
                state="announced",
                digest=weights.digest,
                pool="bench",
                uri=manifest.uri,
                announced_at_ms=0,
            )
        )
    return _Scene(base, load, room, store, revisions, [AdapterBlock.build(weights, base.adapter_dtype) for weights in adapters])


async def _measured(scene: _Scene) -> list[dict[str, float]]:
    longest = len(PROMPT) + 4 * scene.load.steps + 64
    seqs = max(2, scene.load.running + scene.load.requests)
    engine = Engine(scene.base, Budgets(max_num_seqs=seqs, max_num_batched_tokens=max(512, 2 * seqs)), context_tokens=longest)
    await engine.start()
    try:
        return [await _round(scene, engine) for _ in range(scene.load.repeats + 1)][1:]
    finally:
        await engine.stop()


@asynccontextmanager
async def _nothing_at_hand(scene: _Scene) -> AsyncIterator[Loader]:
    """A loader with all tiers, as a worker has them, and nothing in any."""
    with tempfile.TemporaryDirectory(prefix="disk-tier-", dir=scene.room) as path:
        disk = DiskTier(Path(path), TIERS.disk_bytes, scene.base.block_form)
        loader = loader_of(scene.store, scene.base, TIERS, scene.load.rank, disk)
        try:
            yield loader
        finally:
            await loader.close()


async def _round(scene: _Scene, engine: Engine) -> dict[str, float]:
    alone_s, alone = await _loaded(scene, together=False)
    together_s, together = await _loaded(scene, together=True)
    loads, refused = await _one_cold_adapter(scene, engine)
    step_alone_s, step_loading_s, failed = await _steps(scene, engine)
    return {
        "alone_s": alone_s,
        "together_s": together_s,
        "loads": loads,
        "step_alone_s": step_alone_s,
        "step_loading_s": step_loading_s,
        "errors": alone + together + refused + failed,
    }


async def _loaded(scene: _Scene, together: bool, checked: bool = True) -> tuple[float, int]:
    """Load every adapter with nothing at hand and check what came. Gives the seconds until all were there, and how many failed."""
    async with _nothing_at_hand(scene) as loader:
        begun = time.perf_counter()
        if together:
            found = await asyncio.gather(*(loader.lease(revision) for revision in scene.revisions), return_exceptions=True)
        else:
            found = [(await asyncio.gather(loader.lease(revision), return_exceptions=True))[0] for revision in scene.revisions]
        seconds = time.perf_counter() - begun
        for lease, block in zip(found, scene.blocks, strict=True):
            if not isinstance(lease, BaseException):
                if checked and not torch.equal(lease.block.flat.cpu(), block.flat):
                    raise WrongResult(f"adapter {block.digest} was loaded with other numbers than it was published with")
                lease.release()
    return seconds, sum(isinstance(lease, BaseException) for lease in found)


async def _one_cold_adapter(scene: _Scene, engine: Engine) -> tuple[int, int]:
    """(reads of the store, failures) of many requests at once for one adapter that is nowhere near."""
    revision = scene.revisions[0]
    before = scene.store.reads[str(revision.uri)]
    async with _nothing_at_hand(scene) as loader:
        asked = [answer(engine, loader, revision, PROMPT, f"one-{number}", 2) for number in range(scene.load.requests)]
        found = await asyncio.gather(*asked, return_exceptions=True)
    tokens = {completion.tokens for completion in found if not isinstance(completion, BaseException)}
    if len(tokens) > 1:
        raise WrongResult("the same prompt under the same adapter was answered differently")
    return scene.store.reads[str(revision.uri)] - before, sum(isinstance(one, BaseException) for one in found)


async def _steps(scene: _Scene, engine: Engine) -> tuple[float, float, int]:
    """Median seconds of a step of the running rows without loads and while all adapters load; and how many loads failed."""
    stop = asyncio.Event()
    clock = StepClock(lambda: engine.steps)
    running = [asyncio.create_task(_decode(engine, clock, stop, number)) for number in range(scene.load.running)]
    await clock.seen(scene.load.steps)
    alone, clock.gaps_s = clock.gaps_s[len(clock.gaps_s) // 4 :], []
    failed = 0
    while len(clock.gaps_s) < scene.load.steps:
        failed += (await _loaded(scene, together=True, checked=False))[1]
    loading = list(clock.gaps_s)
    stop.set()
    await asyncio.gather(*running)
    return spread(alone)["median"], spread(loading)["median"], failed


async def _decode(engine: Engine, clock: StepClock, stop: asyncio.Event, number: int) -> None:
    """A row that runs until told to stop, by one generation after the other."""
    while not stop.is_set():
        sampling = Sampling(max_tokens=4 * 16, ignore_eos=True)
        await engine.run(Generation(f"running-{number}", PROMPT, sampling, seed=number), clock.tick)
