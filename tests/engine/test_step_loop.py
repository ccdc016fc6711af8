"""The engine's loop under any history of submits, cancellations and deadlines: who asked is answered once, and nothing is left behind."""

import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from mint_stream.adapter import AdapterBlock
from mint_stream.engine.budgets import Budgets
from mint_stream.engine.generation import Completion, Generation
from mint_stream.engine.runner import Runner
from mint_stream.engine.step_loop import Outcome, StepLoop
from mint_stream.errors import Cancelled, DeadlineExceeded, MintError
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase, load_base
from tests.factories import random_weights, tiny_base

BUDGETS = Budgets(max_num_seqs=4, max_num_batched_tokens=12, max_adapters=2)
ADAPTERS = 3
FAR_S = 1e6
WAIT_S = 30.0

PROMPTS = st.sampled_from(["h", "hello", "a longer prompt than one step takes", "zz"])
LENGTHS = st.sampled_from([1, 2, 7, 20])
LANES = st.sampled_from(["online", "bulk"])


@dataclass(frozen=True)
class Asked:
    """What of a generation decides its text."""

    prompt: str
    adapter: int | None
    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass
class Bench:
    """One base and one runner for all histories, so that what one of them leaks the next ones miss."""

    base: ResidentBase
    runner: Runner
    blocks: list[AdapterBlock] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blocks = [AdapterBlock.build(random_weights(self.base.linears, seed=seed)) for seed in range(ADAPTERS)]
        self.alone = cache(self._alone)

    def generation(self, name: str, asked: Asked, lane: str = "online", deadline_at_s: float | None = None) -> Generation:
        block = None if asked.adapter is None else self.blocks[asked.adapter]
        sampling = Sampling(max_tokens=asked.max_tokens, stop=asked.stop)
        return Generation(name, tuple(asked.prompt.encode()), sampling, 0, block, lane=lane, deadline_at_s=deadline_at_s)

    def decode(self, tokens) -> str:
        return str(self.base.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def loop(self, posted: "queue.Queue[Outcome]") -> StepLoop:
        def post(outcomes: list[Outcome]) -> None:
            for outcome in outcomes:
                posted.put(outcome)

        return StepLoop(self.runner, BUDGETS, self.decode, self.base.eos_tokens, post)

    def _alone(self, asked: Asked) -> Completion:
        with Life(self) as life:
            key = life.submit(self.generation("alone", asked))
            life.wait_for_all()
        end = life.ends[key]
        assert isinstance(end, Completion)
        return end


class Life:
    """A loop on its thread from `with` to the end of it, and what it has said of each key."""

    def __init__(self, bench: Bench) -> None:
        self.posted: queue.Queue[Outcome] = queue.Queue()
        self.loop = bench.loop(self.posted)
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.texts: dict[int, str] = {}
        self.ends: dict[int, Completion | MintError] = {}
        self.times_ended: Counter[int] = Counter()

    def __enter__(self) -> "Life":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.stop()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        while not self.posted.empty():
            self._note(self.posted.get())

    def submit(self, generation: Generation) -> int:
        key = len(self.texts)
        self.texts[key] = ""
        self.loop.submit(key, generation)
        return key

    def hear(self) -> None:
        """Wait for the next thing the loop says."""
        self._note(self.posted.get(timeout=WAIT_S))

    def wait_for_all(self) -> None:
        while len(self.ends) < len(self.texts):
            self.hear()

    def _note(self, outcome: Outcome) -> None:
        assert not self.times_ended[outcome.key], "something was said of a sequence that had ended"
        self.texts[outcome.key] += outcome.text
        if outcome.end is not None:
            self.ends[outcome.key] = outcome.end
            self.times_ended[outcome.key] += 1


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    base = load_base(tiny_base(tmp_path_factory.mktemp("base") / "llama"), dtype=torch.float32)
    runner = Runner(base, BUDGETS.max_num_seqs, base.context_tokens)
    runner.warm_up()
    return Bench(base, runner)


class AnyHistory(RuleBasedStateMachine):
    """The laws are checked in `teardown`, when everything has ended: by itself, or because the loop was stopped in the middle."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.life = Life(self.bench)
        self.life.__enter__()
        self.asked: dict[int, Asked] = {}
        self.cancelled: set[int] = set()
        self.late: set[int] = set()
        self.stopped_early = False

    @rule(
        prompt=PROMPTS,
        adapter=st.none() | st.integers(0, ADAPTERS - 1),
        max_tokens=LENGTHS,
        lane=LANES,
        deadline=st.sampled_from([None, None, None, -1.0, FAR_S]),
    )
    def submit(self, prompt: str, adapter: int | None, max_tokens: int, lane: str, deadline: float | None) -> None:
        asked = Asked(prompt, adapter, max_tokens)
        deadline_at_s = None if deadline is None else time.monotonic() + deadline
        key = self.life.submit(self.bench.generation(f"r{len(self.asked)}", asked, lane, deadline_at_s))
        self.asked[key] = asked
        if deadline is not None and deadline < 0:
            self.late.add(key)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, len(self.asked) - 1))
        self.life.loop.cancel(key, "changed my mind")
        self.cancelled.add(key)

    @rule()
    def cancel_what_nobody_asked_for(self) -> None:
        self.life.loop.cancel(10**6, "who?")

    @precondition(lambda self: len(self.life.ends) < len(self.asked))
    @rule()
    def let_it_work(self) -> None:
        self.life.hear()

    @precondition(lambda self: not self.stopped_early)
    @rule(give_up=st.integers(0, 9))
    def maybe_stop_in_the_middle(self, give_up: int) -> None:
        if give_up == 0:
            self.stopped_early = True

    def teardown(self) -> None:
        if not self.stopped_early:
            self.life.wait_for_all()
        self.life.__exit__()
        self.everyone_heard_exactly_one_end()
        for key, asked in self.asked.items():
            self.it_ended_as_it_had_to(key, asked)
        self.nothing_is_left_behind()

    def everyone_heard_exactly_one_end(self) -> None:
        unheard = set(self.asked) - set(self.life.ends)
        if not self.stopped_early:
            assert not unheard
        assert set(self.life.times_ended.values()) <= {1}

    def it_ended_as_it_had_to(self, key: int, asked: Asked) -> None:
        end, text = self.life.ends.get(key), self.life.texts[key]
        alone = self.bench.alone(asked)
        assert alone.text.startswith(text)
        if isinstance(end, Completion):
            assert key not in self.late
            assert (end.tokens, end.text, end.finish_reason) == (alone.tokens, alone.text, alone.finish_reason)
            assert text == end.text
        elif isinstance(end, DeadlineExceeded):
            assert key in self.late and text == ""
        elif end is not None:
            assert isinstance(end, Cancelled) and (key in self.cancelled or self.stopped_early)

    def nothing_is_left_behind(self) -> None:
        cache_ = self.bench.runner.cache
        if not self.stopped_early:
            assert self.life.loop.running == 0
        assert cache_.free_slots == BUDGETS.max_num_seqs
        for layer in range(2):
            keys, values = cache_.layer(layer)
            assert keys.isfinite().all() and values.isfinite().all()


def test_everyone_is_answered_once_with_the_text_it_gets_alone_and_every_slot_comes_back(bench: Bench):
    AnyHistory.bench = bench
    run_state_machine_as_test(
        AnyHistory,
        settings=settings(max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)),
    )


def test_more_sequences_than_slots_and_adapters_than_fit_a_step_all_end_with_their_own_text(bench: Bench):
    asked = [Asked(prompt, adapter, 12) for prompt in ("a", "bb", "ccc") for adapter in (None, 0, 1, 2)]
    with Life(bench) as life:
        keys = [life.submit(bench.generation(str(n), one, lane="bulk" if n % 3 else "online")) for n, one in enumerate(asked)]
        life.wait_for_all()
    assert [life.ends[key].tokens for key in keys] == [bench.alone(one).tokens for one in asked]
    assert bench.runner.max_adapters_in_step == BUDGETS.max_adapters


def test_a_cancellation_that_comes_before_its_submission_cancels_nothing(bench: Bench):
    asked = Asked("hello", None, 3)
    with Life(bench) as life:
        life.loop.cancel(0, "too early")
        life.submit(bench.generation("r", asked))
        life.wait_for_all()
    assert life.ends[0].tokens == bench.alone(asked).tokens


def test_stopping_ends_what_waits_and_what_runs_and_gives_the_slots_back(bench: Bench):
    with Life(bench) as life:
        for number in range(2 * BUDGETS.max_num_seqs):
            life.submit(bench.generation(str(number), Asked("hello", None, 60)))
        life.hear()
    assert set(life.ends) == set(range(2 * BUDGETS.max_num_seqs))
    assert any("the engine was stopped" in str(end) for end in life.ends.values())
    assert bench.runner.cache.free_slots == BUDGETS.max_num_seqs


def test_a_deadline_that_passed_ends_it_before_it_takes_a_slot_or_a_step(bench: Bench):
    with Life(bench) as life:
        steps = life.loop.steps
        life.submit(bench.generation("late", Asked("hello", None, 3), deadline_at_s=time.monotonic() - 1))
        life.wait_for_all()
        assert life.loop.steps == steps
    assert isinstance(life.ends[0], DeadlineExceeded) and "late" in str(life.ends[0]) and "0 generated" in str(life.ends[0])


def test_a_stop_string_in_company_cuts_the_text_where_it_does_alone(bench: Bench):
    whole = bench.alone(Asked("hello", 1, 20)).text
    letter = next(letter for letter in whole[1:] if letter != "\ufffd")
    asked = Asked("hello", 1, 20, stop=(letter,))
    with Life(bench) as life:
        keys = [life.submit(bench.generation(str(n), one)) for n, one in enumerate((asked, Asked("hello", 1, 20), asked))]
        life.wait_for_all()
    texts = [life.ends[key].text for key in keys]
    assert texts == [whole[: whole.index(letter)], whole, whole[: whole.index(letter)]]
    assert life.ends[keys[0]].finish_reason == "stop"
