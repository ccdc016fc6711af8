"""A Zipf(1.0) stream of requests over very many adapters, through catalog, tiers and engine, in bounded memory and disk.

Names are more than contents when asked so: name n then has the content n modulo their number, as adapters that were copied do.
"""

import asyncio
import itertools
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mint_stream.app.measure import machine, spread, versions
from mint_stream.bench.farm import Farm, Plan, farm
from mint_stream.bench.serving_scene import Tiers, answer, loader_of
from mint_stream.cache import DiskTier, Loader, Tally
from mint_stream.catalog import Catalog, Entry
from mint_stream.engine.batcher import Budgets
from mint_stream.engine.engine import Engine
from mint_stream.messages.adapters import Head, head_key, revision_key
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.store.delayed import DelayedStore

NEW_TOKENS = 4
PROMPT = tuple(range(100, 108))
TARGETS = ("self_attn.q_proj", "self_attn.v_proj")
CATALOG_CHUNK = 10_000


@dataclass(frozen=True)
class Stream:
    """How many adapters there are, how many requests come, and what each tier may hold."""

    adapters: int = 100_000
    names: int = 0
    """0: as many as adapters."""
    requests: int = 2_000
    """Through the engine, measured."""
    warm_up: int = 20_000
    """Requests before those, through the tiers alone."""
    concurrency: int = 32
    layers: int = 2
    """Of the base, adapted in q and v."""
    latency_ms: float = 0.0
    """Of each read of the store, added."""
    device_bytes: int = 16 * 2**20
    host_bytes: int = 64 * 2**20
    disk_bytes: int = 2**30


@dataclass(frozen=True)
class _Scene:
    stream: Stream
    catalog: Catalog
    loader: Loader
    engine: Engine


def run(base_path: Path, room: Path, stream: Stream) -> dict[str, Any]:
    """Measure; adapters are made below `room` unless they are there, and stay there."""
    base = load_base(base_path, dtype=torch.float32)
    linears = {path: shape for path, shape in base.linears.items() if path.endswith(TARGETS) and _layer(path) < stream.layers}
    shutil.rmtree(room / "disk-tier", ignore_errors=True)  # an earlier run's would begin warm
    begun = time.perf_counter()
    grown = farm(room / f"farm-{stream.adapters}", Plan(stream.adapters, base.digest, linears))
    made_s = time.perf_counter() - begun
    with Catalog(None, partitions=1) as catalog:
        named_s = _named(catalog, grown, stream)
        measured = asyncio.run(_measured(base, grown, catalog, room / "disk-tier", stream))
    return {
        "workload": asdict(stream) | {"rank": "1 to 8", "prompt_tokens": len(PROMPT), "new_tokens": NEW_TOKENS},
        "made_s": made_s,
        "catalog_s": named_s,
        **measured,
        "machine": machine(),
        "versions": versions("torch", "transformers", "mint-stream"),
    }


def _layer(path: str) -> int:
    return next(int(part) for part in path.split(".") if part.isdigit())


def _named(catalog: Catalog, grown: Farm, stream: Stream) -> float:
    """Put every name into the catalog; gives the seconds."""
    begun, offset = time.perf_counter(), 0
    names = iter(range(stream.names or stream.adapters))
    while chunk := list(itertools.islice(names, CATALOG_CHUNK)):
        rows = []
        for number in chunk:
            name = f"adapter-{number}"
            revision = grown.revision(number % stream.adapters, name)
            head = Head(adapter_id=name, pool="bench", next_number=2, aliases={"production": 1})
            rows.append(Entry(revision_key(name, 1), revision.encode(), offset))
            rows.append(Entry(head_key(name), head.encode(), offset + 1))
            offset += 2
        catalog.apply(0, rows, offset)
    return time.perf_counter() - begun


async def _measured(base: ResidentBase, grown: Farm, catalog: Catalog, disk_path: Path, stream: Stream) -> dict[str, Any]:
    store = DelayedStore(grown.uri, stream.latency_ms / 1e3, {"sync": False})
    disk = DiskTier(disk_path, stream.disk_bytes, base.block_form, Tally("disk"))
    loader = loader_of(store, base, Tiers(stream.device_bytes, stream.host_bytes), max_rank=8, disk=disk)
    budgets = Budgets(
        max_num_seqs=stream.concurrency, max_num_batched_tokens=max(256, 2 * stream.concurrency), max_adapters=stream.concurrency
    )
    engine = Engine(base, budgets, context_tokens=len(PROMPT) + NEW_TOKENS)
    await engine.start()
    scene = _Scene(stream, catalog, loader, engine)
    try:
        asked = popular(stream.names or stream.adapters, stream.warm_up + stream.requests)
        warm_up = await _through(scene, asked[: stream.warm_up], generate=False)
        return {"warm_up": warm_up, **await _through(scene, asked[stream.warm_up :], generate=True)}
    finally:
        await engine.stop()
        await loader.close()


def popular(names: int, count: int, seed: int = 0) -> Sequence[int]:
    """Draws from Zipf(1.0) over names whose popularity has nothing to do with their number."""
    draw = np.random.default_rng(seed)
    steps = np.cumsum(1.0 / np.arange(1, names + 1))
    ranks = np.searchsorted(steps, draw.random(count) * steps[-1])
    order: list[int] = draw.permutation(names)[ranks].tolist()
    return order


async def _through(scene: _Scene, asked: Sequence[int], generate: bool) -> dict[str, Any]:
    """Requests one after the other by so many clients at once: how long each took, and what each tier found."""
    before = {tally.tier: (tally.hits, tally.misses) for tally in scene.loader.tallies}
    queue, latencies, errors = iter(enumerate(asked)), [], []

    async def client() -> None:
        for number, name in queue:
            begun = time.perf_counter()
            try:
                await _one(scene, number, name, generate)
            except Exception as error:
                errors.append(repr(error))
            latencies.append((time.perf_counter() - begun) * 1e3)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(scene.stream.concurrency)))
    seconds = time.perf_counter() - begun
    return {
        "requests_per_s": len(asked) / seconds,
        "latency_ms": {f"p{q}": float(np.percentile(latencies, q)) for q in (50, 90, 99)} if latencies else {},
        "latency_spread_ms": spread(latencies) if latencies else {},
        "tiers": {tally.tier: _found(tally, before[tally.tier], len(asked)) for tally in scene.loader.tallies},
        "errors": len(errors),
        "first_errors": errors[:3],
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


async def _one(scene: _Scene, number: int, name: int, generate: bool) -> None:
    revision = scene.catalog.resolve(f"adapter-{name}")
    if generate:
        await answer(scene.engine, scene.loader, revision, PROMPT, str(number), NEW_TOKENS)
    else:
        (await scene.loader.lease(revision)).release()


def _found(tally: Tally, before: tuple[int, int], requests: int) -> dict[str, float]:
    """Of those who looked here, how many found it, and how many requests it answered of all."""
    hits, misses = tally.hits - before[0], tally.misses - before[1]
    return {
        "hit_rate": hits / max(1, hits + misses),
        "share_of_requests": hits / max(1, requests),
        "used_bytes": tally.used_bytes,
        "budget_bytes": tally.budget_bytes,
        "mean_load_ms": tally.status().mean_load_ms,
    }
