"""What a step costs grows with its rows and their adapters, and with nothing that is only known: counted, not timed."""

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.device import DeviceTier
from mint_stream.cache.host import HostTier
from mint_stream.catalog import Catalog, Entry
from mint_stream.engine.budgets import Budgets
from mint_stream.engine.generation import Generation
from mint_stream.engine.runner import Runner
from mint_stream.engine.step_loop import Outcome, StepLoop
from mint_stream.messages.adapters import Head, Revision, head_key, revision_key
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase, load_base
from tests.factories import random_weights, tiny_base

FEW, MANY = 16, 100_000
BUDGETS = Budgets(max_num_seqs=4, max_num_batched_tokens=64, max_adapters=4)
COUNTED, TRACED, END = range(6, 10), range(10, 14), 14
"""Steps of a run, by number: calls are counted in the first ones, memory is traced in the next; all before them are warming up."""
SPARE_BYTES = 64 * 1024
"""A list of 10^5 pointers has twelve times as many."""


@dataclass
class World:
    """`known` adapters, each in the catalog and the host tier, and a request for each at the engine: four run, all others wait."""

    base: ResidentBase
    catalog: Catalog
    known: int
    host: HostTier = field(default_factory=lambda: HostTier(1 << 40))
    device: DeviceTier = field(default_factory=lambda: DeviceTier(1 << 40))
    calls: int = 0
    peak_bytes: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self.blocks = list(self._blocks())
        for block in self.blocks:
            self.host.put(block)
        self.catalog.apply(0, [entry for number in range(self.known) for entry in self._entries(number)], 2 * self.known)
        self.runner = Runner(self.base, BUDGETS.max_num_seqs, 64)
        self.runner.warm_up()
        self.loop = StepLoop(self.runner, BUDGETS, lambda tokens: "x" * len(tokens), frozenset(), self._after_step)

    def run(self) -> None:
        """All requests are there before the first step; the loop is on this thread."""
        sampling = Sampling(max_tokens=50, ignore_eos=True)
        for number, block in enumerate(self.blocks):
            self.loop.submit(number, Generation(f"r{number}", (1, 2, 3), sampling, seed=0, adapter=block))
        gc.collect()
        gc.disable()
        try:
            self.loop.run()
        finally:
            sys.setprofile(None)
            gc.enable()

    def _blocks(self) -> Iterator[AdapterBlock]:
        """Real ones for those that run; the others' numbers are theirs too."""
        real = [AdapterBlock.build(random_weights(self.base.linears, seed=seed)) for seed in range(BUDGETS.max_num_seqs)]
        yield from real
        for number in range(len(real), self.known):
            yield AdapterBlock.over(real[0].flat, real[0].shapes, f"{number:064x}")

    def _entries(self, number: int) -> tuple[Entry, Entry]:
        name = f"a{number}"
        digest, fields = self.blocks[number].digest, {"number": 1, "state": "announced", "pool": "p", "uri": "memory://x"}
        revision = Revision(adapter_id=name, digest=digest, base_digest="b" * 64, announced_at_ms=1, **fields)
        head = Head(adapter_id=name, pool="p", next_number=2, aliases={"production": 1})
        return Entry(revision_key(name, 1), revision.encode(), 2 * number), Entry(head_key(name), head.encode(), 2 * number + 1)

    def _after_step(self, outcomes: list[Outcome]) -> None:
        """Between two steps, on the loop's thread: begin or end what is measured."""
        self.step += 1
        assert len(outcomes) >= BUDGETS.max_num_seqs
        if self.step == TRACED.start:
            tracemalloc.start()
        if self.step in COUNTED or self.step in TRACED:
            self._look_up(f"a{self.step}")
        if self.step == COUNTED.start:
            sys.setprofile(self._count)
        if self.step == COUNTED.stop:
            sys.setprofile(None)
        if self.step == END:
            self.peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            self.loop.stop()

    def _look_up(self, name: str) -> None:
        """What a request does on its way to the engine."""
        revision = self.catalog.resolve(name)
        assert self.host.get(revision.digest) is not None and self.device.lease(revision.digest) is None

    def _count(self, _frame: FrameType, event: str, _argument: Any) -> None:
        self.calls += event in ("call", "c_call")


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_hundred_thousand_known_adapters_change_no_call_and_no_memory_of_a_step(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base"), dtype=torch.float32)
    costs = []
    for known in (FEW, MANY):
        with Catalog(None, 1) as catalog:
            world = World(base, catalog, known)
            world.run()
            costs.append((world.calls, world.peak_bytes))
            assert len(world.host._blocks) == known and world.runner.max_adapters_in_step == BUDGETS.max_num_seqs
    (few, few_bytes), (many, many_bytes) = costs
    assert few > 1000 and many == few
    assert many_bytes < few_bytes + SPARE_BYTES
