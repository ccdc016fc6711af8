"""A worker without Kafka: the engine and the tiers that a request passes in the serve role, and nothing around them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mint_stream.cache import AdapterSource, DeviceTier, DiskTier, HostTier, Loader, Tally
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Completion, Generation
from mint_stream.messages.adapters import Revision
from mint_stream.messages.inference import Sampling
from mint_stream.metrics import Metrics
from mint_stream.model.base import ResidentBase
from mint_stream.store import Store


@dataclass(frozen=True)
class Tiers:
    """Bytes each tier may hold, 0 for no disk tier; and how many adapters are read at a time."""

    device_bytes: int
    host_bytes: int
    disk_bytes: int = 0
    parallelism: int = 4


def loader_of(store: Store, base: ResidentBase, tiers: Tiers, max_rank: int, disk: DiskTier | None = None) -> Loader:
    """A loader with nothing in memory yet."""
    metrics = Metrics()
    source = AdapterSource(store, base.layers, max_rank, base.block_form, disk, Tally("store", metrics))
    host, device = HostTier(tiers.host_bytes, Tally("host", metrics)), DeviceTier(tiers.device_bytes, base.device, Tally("device", metrics))
    return Loader(source, host, device, tiers.parallelism)


@dataclass
class StepClock:
    """Times of steps, seen by the text that running sequences show."""

    steps: Callable[[], int]
    gaps_s: list[float] = field(default_factory=list)
    _last: tuple[int, float] | None = None
    _ticked: asyncio.Event = field(default_factory=asyncio.Event)

    def tick(self, _text: str) -> None:
        """A sequence has shown text; several of one step count once."""
        now, steps = time.perf_counter(), self.steps()
        if self._last is None or steps > self._last[0]:
            if self._last is not None:
                self.gaps_s.append((now - self._last[1]) / (steps - self._last[0]))
            self._last = (steps, now)
            self._ticked.set()

    async def seen(self, count: int) -> None:
        """Wait until so many gaps are known."""
        while len(self.gaps_s) < count:
            self._ticked.clear()
            await self._ticked.wait()


async def answer(
    engine: Engine, loader: Loader, revision: Revision | None, prompt: tuple[int, ...], name: str, new_tokens: int
) -> Completion:
    """One request as a worker serves it: lease, generate, release."""
    lease = await loader.lease(revision) if revision is not None else None
    try:
        sampling = Sampling(max_tokens=new_tokens, ignore_eos=True)
        return await engine.run(Generation(name, prompt, sampling, seed=0, adapter=lease.block if lease else None))
    finally:
        if lease is not None:
            lease.release()
