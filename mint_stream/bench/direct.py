"""The serving worker's engine called directly: the same base, budgets, adapters and environment, without Kafka, catalog and admission."""

import asyncio
import multiprocessing
import os
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from mint_stream.adapter import AdapterBlock
from mint_stream.app.serve_parts import budgets, pool_base
from mint_stream.cache.source import AdapterSource
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Completion, Generation
from mint_stream.messages.adapters import Revision
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import load_base
from mint_stream.settings import Settings
from mint_stream.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A request: tokens in, tokens out, and the revision whose adapter answers (None: the bare base)."""

    prompt: tuple[int, ...]
    new_tokens: int
    revision: Revision | None = None


@dataclass(frozen=True)
class Answer:
    """What the engine drew, and how long that took whoever asked."""

    tokens: tuple[int, ...]
    seconds: float
    prefill_ms: float


class Direct(AbstractContextManager["Direct"]):
    """An engine in a process of its own, which ends with its `with` block."""

    def __init__(self, base: Path, settings: Settings, reuse_prefixes: bool = True) -> None:
        with _environment(OMP_WAIT_POLICY="PASSIVE"):  # as a role of a local system has it
            self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (base, settings, reuse_prefixes))
            self.dtype: str = self._process.submit(_dtype).result()

    async def run(self, asked: Sequence[Asked], at_once: int = 1) -> list[Answer]:
        """Ask for everything, so many at a time. Adapters are loaded before the first is asked for."""
        return await asyncio.wrap_future(self._process.submit(_run, asked, at_once))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.submit(_end).result()
        self._process.shutdown()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _Scene:
    """What the process has loaded."""

    def __init__(self, base: Path, settings: Settings, reuse_prefixes: bool) -> None:
        self.resident = load_base(base)
        founded = pool_base(self.resident, settings)
        store = Store(settings.store_uri, settings.store.options)
        self._source = AdapterSource(store, self.resident.layers, founded.max_rank, self.resident.block_form)
        self._blocks: dict[str, AdapterBlock] = {}
        self.engine = Engine(self.resident, budgets(settings.serving), founded.context_tokens, reuse_prefixes=reuse_prefixes)
        self.loop = asyncio.new_event_loop()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """On the process's one event loop."""
        return self.loop.run_until_complete(work)

    async def answer(self, number: int, asked: Asked, places: asyncio.Semaphore) -> Answer:
        """One request, timed from where it has its place."""
        block = self._block(asked.revision)
        sampling = Sampling(max_tokens=asked.new_tokens, ignore_eos=True)
        async with places:
            begun = time.perf_counter()
            done: Completion = await self.engine.run(Generation(str(number), asked.prompt, sampling, 0, block))
            return Answer(done.tokens, time.perf_counter() - begun, done.prefill_ms)

    def _block(self, revision: Revision | None) -> AdapterBlock | None:
        if revision is None:
            return None
        if revision.digest not in self._blocks:
            self._blocks[revision.digest] = self._source.block(revision)
        return self._blocks[revision.digest]

    async def answers(self, asked: Sequence[Asked], at_once: int) -> list[Answer]:
        """All of them in order."""
        places = asyncio.Semaphore(at_once)
        return await asyncio.gather(*(self.answer(number, one, places) for number, one in enumerate(asked)))


_scene: dict[str, _Scene] = {}


def _begin(base: Path, settings: Settings, reuse_prefixes: bool) -> None:
    _scene["here"] = scene = _Scene(base, settings, reuse_prefixes)
    scene.do(scene.engine.start())


def _dtype() -> str:
    dtype: torch.dtype = _scene["here"].resident.dtype
    return str(dtype).removeprefix("torch.")


def _run(asked: Sequence[Asked], at_once: int) -> list[Answer]:
    scene = _scene["here"]
    return scene.do(scene.answers(asked, at_once))


def _end() -> None:
    scene = _scene.pop("here")
    scene.do(scene.engine.stop())
    scene.loop.close()
