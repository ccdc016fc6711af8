"""The engine thread's work: take what was asked, plan a step, run it, tell what came of it. Until told to stop."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mint_stream.engine.batcher import Batcher, Budgets, Rows, Waiting
from mint_stream.engine.generation import Completion, Generation
from mint_stream.engine.runner import Runner
from mint_stream.engine.sequence import RunningSequence
from mint_stream.engine.stops import Decode
from mint_stream.errors import AdapterUnloadable, Cancelled, DeadlineExceeded, InvalidRequest, MintError
from mint_stream.model.turns import Turns


@dataclass(frozen=True)
class Outcome:
    """What a step meant for one sequence: text to show, and its end, if it ended."""

    key: int
    text: str = ""
    end: Completion | MintError | None = None


@dataclass(frozen=True)
class _Submission:
    key: int
    generation: Generation
    at_s: float


@dataclass(frozen=True)
class _Cancellation:
    key: int
    reason: str


class StepLoop:
    """`submit`, `cancel` and `stop` may be called from any thread; everything else belongs to the thread in `run`."""

    def __init__(
        self,
        runner: Runner,
        budgets: Budgets,
        decode: Decode,
        eos_tokens: frozenset[int],
        post: Callable[[list[Outcome]], None],
        reuse_prefixes: bool = True,
        turns: Turns | None = None,
    ) -> None:
        """`post` receives the outcomes of each step, on this loop's thread. `turns`: on a base that is not this loop's alone."""
        self._turns = turns or Turns()
        self._runner, self._decode, self._eos_tokens, self._post = runner, decode, eos_tokens, post
        self._reuse_prefixes = reuse_prefixes
        self._batcher = Batcher(budgets, self._begin)
        self._sequences: dict[int, RunningSequence] = {}
        self._inbox: deque[_Submission | _Cancellation] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self.steps = 0

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return self._batcher.running

    def submit(self, key: int, generation: Generation) -> None:
        """Queue a generation."""
        self._tell(_Submission(key, generation, time.monotonic()))

    def cancel(self, key: int, reason: str) -> None:
        """End a sequence before its next step."""
        self._tell(_Cancellation(key, reason))

    def stop(self) -> None:
        """Cancel everything and let `run` return."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def _tell(self, message: _Submission | _Cancellation) -> None:
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    def run(self) -> None:
        """Step until stopped."""
        try:
            while self._awaken():
                self._turns.busy(True)
                outcomes = [outcome for message in self._taken() if (outcome := self._heed(message)) is not None]
                outcomes.extend(self._step())
                self._turns.busy(bool(self._sequences))
                if outcomes:
                    self._post(outcomes)
        finally:
            self._turns.busy(False)
        self._post([self._end(key, Cancelled("the engine was stopped")) for key in list(self._sequences)])

    def _awaken(self) -> bool:
        """Wait until there is something to do; False: stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self._inbox or self._sequences)
            return not self._stopping

    def _taken(self) -> list[_Submission | _Cancellation]:
        with self._wake:
            taken = list(self._inbox)
            self._inbox.clear()
        return taken

    def _heed(self, message: _Submission | _Cancellation) -> Outcome | None:
        if isinstance(message, _Cancellation):
            return self._end(message.key, Cancelled(message.reason)) if message.key in self._sequences else None
        asked = message.generation
        self._sequences[message.key] = RunningSequence(message.key, asked, self._decode, message.at_s)
        adapter = None if asked.adapter is None else id(asked.adapter)
        self._batcher.add(Waiting(message.key, len(asked.prompt_tokens), adapter, asked.lane, message.at_s, asked.deadline_at_s))
        return None

    def _step(self) -> list[Outcome]:
        now_s = time.monotonic()
        step = self._batcher.step(now_s)
        outcomes = [self._end(key, _too_late(self._sequences[key])) for key in step.expired]
        if step.rows:
            outcomes.extend(self._compute(step.rows))
            self.steps += 1
        return outcomes

    def _begin(self, key: int) -> int | None:
        """Give a sequence its slot: how many of its prompt's tokens are in it already. None: there is no memory for it now."""
        sequence = self._sequences[key]
        scored = sequence.generation.sampling.prompt_logprobs is not None  # their rows have to be computed
        longest = len(sequence.tokens) + sequence.generation.sampling.max_tokens
        found = self._runner.cache.take(sequence.maker, sequence.tokens, self._reuse_prefixes and not scored, longest)
        if found is None:
            return None
        sequence.slot, sequence.reused_tokens, sequence.admitted_at_s = found.slot, found.tokens, time.monotonic()
        return found.tokens

    def _compute(self, rows: tuple[Rows, ...]) -> list[Outcome]:
        with self._turns.step():
            drawn = self._runner.run([(one, self._sequences[one.key]) for one in rows])
        now_s = time.monotonic()
        return [self._advanced(sequence, token, now_s) for sequence, token in drawn]

    def _advanced(self, sequence: RunningSequence, token: int | None, now_s: float) -> Outcome:
        if token is None:
            return self._end(sequence.key, _not_finite(sequence.generation))
        shown, reason = sequence.accept(token, self._eos_tokens, now_s)
        if reason is None:
            return Outcome(sequence.key, shown)
        return self._end(sequence.key, sequence.completion(reason, now_s), shown)

    def _end(self, key: int, end: Completion | MintError, text: str = "") -> Outcome:
        sequence = self._sequences.pop(key)
        self._batcher.remove(key)
        if sequence.slot >= 0:
            # What was drawn from finite logits was made of finite keys and values; of anything else that is not known.
            self._runner.cache.release(sequence.slot, keep=isinstance(end, Completion))
        return Outcome(key, text, end)


def _too_late(sequence: RunningSequence) -> DeadlineExceeded:
    drawn = len(sequence.drawn)
    return DeadlineExceeded(f"request {sequence.generation.request_id} passed its deadline after {drawn} generated tokens")


def _not_finite(generation: Generation) -> MintError:
    if generation.adapter is not None:
        return AdapterUnloadable(
            f"adapter {generation.adapter.digest} computes numbers that are not finite for request {generation.request_id}"
        )
    return InvalidRequest(f"the base computes numbers that are not finite for request {generation.request_id}: send another prompt")
