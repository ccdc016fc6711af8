"""The engine: a thread that owns torch, between an event loop that asks and a batch that waits for nobody."""

import asyncio
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mint_stream.engine.batcher import Budgets
from mint_stream.engine.generation import Completion, EngineLoad, Generation, OnText
from mint_stream.engine.graphs import CudaGraphs
from mint_stream.engine.runner import Runner
from mint_stream.engine.step_loop import Outcome, StepLoop
from mint_stream.errors import BaseMismatch, Cancelled, EngineFailed, InvalidRequest, PromptTooLong
from mint_stream.model.base import ResidentBase
from mint_stream.model.turns import Turns


@dataclass(frozen=True, eq=False)
class _Asked:
    request_id: str
    future: asyncio.Future[Completion]
    on_text: OnText | None


class Engine:
    """GenerationEngine over a resident base. Every method is called on one event loop; torch runs on the engine's own thread."""

    def __init__(
        self,
        base: ResidentBase,
        budgets: Budgets,
        context_tokens: int | None = None,
        threads: int | None = None,
        reuse_prefixes: bool = True,
        kv_cache_bytes: int | None = None,
        turns: Turns | None = None,
    ) -> None:
        """`context_tokens`: the longest sequence, at most (and by default) the base's. `threads`: for torch; None leaves its default.

        `reuse_prefixes`: prompts that begin like earlier ones of the same revision are not computed again from there.

        The cache has max_num_seqs · context_tokens places; on a CPU it costs memory only for those that sequences have reached. With
        `kv_cache_bytes` it has pages, of no more bytes than that, and sequences wait while there are none for the whole of them.

        `turns`: of a base that somebody trains on beside.
        """
        self._base, self._threads = base, threads
        self.context_tokens = min(context_tokens or base.context_tokens, base.context_tokens)
        graphs = CudaGraphs() if base.device.type == "cuda" else None
        self._runner = Runner(base, budgets.max_num_seqs, self.context_tokens, kv_cache_bytes, graphs)
        self._steps = StepLoop(self._runner, budgets, self._decode, base.eos_tokens, self._post, reuse_prefixes, turns)
        self._asked: dict[int, _Asked] = {}
        self._keys = itertools.count()
        self._ended: asyncio.Future[None] | None = None

    @property
    def load(self) -> EngineLoad:
        """Sequences in slots as of the last step, and all others that were asked for."""
        running = min(self._steps.running, len(self._asked))
        return EngineLoad(running, len(self._asked) - running)

    @property
    def steps(self) -> int:
        """Forward passes so far."""
        return self._steps.steps

    @property
    def max_adapters_in_step(self) -> int:
        """The most distinct adapters that ever shared a pass."""
        return self._runner.max_adapters_in_step

    async def start(self) -> None:
        """Start the thread, warm up, become ready. Raises EngineFailed."""
        loop = asyncio.get_running_loop()
        self._loop, self._ready, self._ended = loop, loop.create_future(), loop.create_future()
        threading.Thread(target=self._main, name="mint-engine", daemon=True).start()
        await asyncio.wait({self._ready, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        if self._ended.done():
            await self.watch()

    async def stop(self) -> None:
        """End the thread; generations still asked for raise Cancelled."""
        self._steps.stop()
        if self._ended is not None:
            await asyncio.wait({self._ended})

    async def watch(self) -> None:
        """Return when stopped, raise EngineFailed when the thread crashed."""
        if self._ended is None:
            raise EngineFailed("the engine was not started")
        await asyncio.shield(self._ended)

    async def run(self, generation: Generation, on_text: OnText | None = None) -> Completion:
        """Generate; see GenerationEngine.run."""
        self._check(generation)
        if self._ended is None or self._ended.done():
            raise EngineFailed("the engine is not running: restart the worker")
        key = next(self._keys)
        asked = _Asked(generation.request_id, self._loop.create_future(), on_text)
        self._asked[key] = asked
        self._steps.submit(key, generation)
        try:
            return await asyncio.shield(asked.future)
        except asyncio.CancelledError:
            self._steps.cancel(key, "the task that waited for it was cancelled")
            await asyncio.wait({asked.future})  # the caller's lease on the adapter must outlive the last step that reads it
            asked.future.exception()
            raise
        finally:
            del self._asked[key]

    def cancel(self, request_id: str, reason: str) -> bool:
        """End every generation of this request_id before its next step."""
        keys = [key for key, asked in self._asked.items() if asked.request_id == request_id]
        for key in keys:
            self._steps.cancel(key, f"request {request_id} was cancelled: {reason}")
        return bool(keys)

    def _check(self, generation: Generation) -> None:
        """Refuse what cannot be computed here."""
        name, prompt, wanted = generation.request_id, generation.prompt_tokens, generation.sampling.max_tokens
        if not prompt or min(prompt) < 0 or max(prompt) >= self._base.vocabulary_tokens:
            raise InvalidRequest(f"request {name} needs a prompt of tokens from 0 to {self._base.vocabulary_tokens - 1}")
        if len(prompt) + wanted > self.context_tokens:
            raise PromptTooLong(f"request {name} has {len(prompt)} prompt tokens and asks for {wanted}: {self.context_tokens} fit in all")
        layers = self._base.layers
        for path, (_, width, height, experts) in generation.adapter.shapes.items() if generation.adapter is not None else ():
            if layers.get(path) != ((width, height, experts) if experts else (width, height)):
                raise BaseMismatch(f"request {name}: the adapter's layer {path} does not fit this base")

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._base.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _main(self) -> None:
        """The thread: everything it does ends in a resolved `_ended`."""
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            self._runner.warm_up()
            self._loop.call_soon_threadsafe(self._ready.set_result, None)
            self._steps.run()
        except BaseException as error:  # whatever ends the thread must reach those who wait
            failure = EngineFailed(f"the engine thread ended by {type(error).__name__}: {error}; restart the worker")
            failure.__cause__ = error
            self._loop.call_soon_threadsafe(self._finish, failure)
        else:
            self._loop.call_soon_threadsafe(self._finish, None)

    def _finish(self, failure: EngineFailed | None) -> None:
        """On the event loop: nobody waits any longer."""
        assert self._ended is not None
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)
            self._ended.exception()  # seen: whoever calls watch or run hears of it
        for asked in self._asked.values():
            if not asked.future.done():
                asked.future.set_exception(failure or Cancelled("the engine was stopped"))

    def _post(self, outcomes: list[Outcome]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, outcomes)

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """On the event loop: text first, then ends. Who stopped waiting is skipped."""
        for outcome in outcomes:
            asked = self._asked.get(outcome.key)
            if asked is None or asked.future.done():
                continue
            if outcome.text and asked.on_text is not None:
                asked.on_text(outcome.text)
            if isinstance(outcome.end, Completion):
                asked.future.set_result(outcome.end)
            elif outcome.end is not None:
                asked.future.set_exception(outcome.end)
