"""The batcher's laws, over random arrivals."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.engine.batcher import Batcher, Budgets, Step, Waiting

BUDGETS = Budgets(max_num_seqs=4, max_num_batched_tokens=10, max_adapters=2, ageing_s=5.0, bulk_floor=0.25)


@dataclass(frozen=True)
class _Arrival:
    at_step: int
    prompt_tokens: int
    new_tokens: int
    adapter: str | None
    lane: str
    deadline_in_s: float | None
    known_tokens: int = 0


arrivals = st.lists(
    st.builds(
        _Arrival,
        at_step=st.integers(0, 20),
        prompt_tokens=st.integers(1, 25),
        new_tokens=st.integers(1, 8),
        adapter=st.sampled_from([None, "a", "b", "c", "d"]),
        lane=st.sampled_from(["online", "bulk"]),
        deadline_in_s=st.one_of(st.none(), st.floats(0, 30)),
        known_tokens=st.integers(0, 25),
    ),
    max_size=25,
)


class _Run:
    """Drives a batcher one step a second until all arrivals are finished, keeping what a law may look at."""

    def __init__(self, arrivals: list[_Arrival], budgets: Budgets = BUDGETS, memory_tokens: int = 10_000) -> None:
        self.memory_tokens = memory_tokens
        self.batcher = Batcher(budgets, self._begin)
        self.arrivals = sorted(arrivals, key=lambda arrival: arrival.at_step)
        self.asked: dict[int, Waiting] = {}
        self.waiting: set[int] = set()
        self.running: set[int] = set()
        self.computed: dict[int, int] = {}
        self.sampled: dict[int, int] = {}
        self.ended: dict[int, str] = {}
        self.now_s = 0.0

    def steps(self, limit: int = 3000) -> Iterator[Step]:
        for number in range(limit):
            self.now_s = float(number)
            for key, arrival in enumerate(self.arrivals):
                if arrival.at_step == number:
                    self._arrive(key, arrival)
            step = self.batcher.step(self.now_s)
            yield step
            self._account(step)
            if len(self.ended) == len(self.arrivals):
                return
        raise AssertionError(f"not finished after {limit} steps: {self.batcher.waiting} waiting, {self.batcher.running} running")

    def _arrive(self, key: int, arrival: _Arrival) -> None:
        deadline = None if arrival.deadline_in_s is None else self.now_s + arrival.deadline_in_s
        lane = "online" if arrival.lane == "online" else "bulk"
        self.asked[key] = Waiting(key, arrival.prompt_tokens, arrival.adapter, lane, self.now_s, deadline)
        self.waiting.add(key)
        self.batcher.add(self.asked[key])

    def _begin(self, key: int) -> int | None:
        """Some prompts are known in part. Who does not fit into the memory beside those who run has to wait."""
        sizes = [self.arrivals[one].prompt_tokens + self.arrivals[one].new_tokens for one in {*self.running, key} - set(self.ended)]
        if sum(sizes) > self.memory_tokens:
            return None
        self.running.add(key)
        self.computed[key] = known = min(self.arrivals[key].known_tokens, self.arrivals[key].prompt_tokens - 1)
        return known

    def _account(self, step: Step) -> None:
        for key in step.expired:
            self.ended[key] = "expired"
        self.waiting -= {*step.admitted, *step.expired}
        self.running = (self.running | set(step.admitted)) - set(step.expired)
        for rows in step.rows:
            self.computed[rows.key] = rows.start + rows.count
            self.sampled[rows.key] = self.sampled.get(rows.key, 0) + rows.samples
            if self.sampled[rows.key] == self.arrivals[rows.key].new_tokens:
                self.batcher.remove(rows.key)
                self.running.discard(rows.key)
                self.ended[rows.key] = "done"


@settings(deadline=None)
@given(arrivals)
def test_no_step_exceeds_its_budgets(arrivals: list[_Arrival]) -> None:
    run = _Run(arrivals)
    for step in run.steps():
        keys = run.running - set(step.expired) | set(step.admitted)
        adapters = {run.asked[key].adapter for key in keys} - {None}
        assert sum(rows.count for rows in step.rows) <= BUDGETS.max_num_batched_tokens
        assert len(keys) <= BUDGETS.max_num_seqs and len(adapters) <= BUDGETS.max_adapters
        assert {rows.key for rows in step.rows} <= keys and len({rows.key for rows in step.rows}) == len(step.rows)


@settings(deadline=None)
@given(arrivals)
def test_each_sequence_computes_each_position_once_in_order_and_samples_from_its_prompts_end_on(arrivals: list[_Arrival]) -> None:
    run = _Run(arrivals)
    for step in run.steps():
        for rows in step.rows:
            prompt = run.asked[rows.key].prompt_tokens
            assert rows.start == run.computed[rows.key] and rows.count >= 1
            assert rows.samples == (rows.start + rows.count >= prompt)
            assert rows.count == 1 or rows.start + rows.count <= prompt


@settings(deadline=None)
@given(arrivals)
def test_every_decoding_sequence_advances_in_every_step(arrivals: list[_Arrival]) -> None:
    run = _Run(arrivals)
    for step in run.steps():
        decoding = {key for key in run.running - set(step.expired) if run.computed.get(key, 0) >= run.asked[key].prompt_tokens}
        assert decoding <= {rows.key for rows in step.rows}


@settings(deadline=None)
@given(arrivals)
def test_who_waited_past_the_ageing_bound_is_overtaken_by_none_of_its_lane(arrivals: list[_Arrival]) -> None:
    run = _Run(arrivals)
    for step in run.steps():
        for key in step.admitted:
            for other in run.waiting - {*step.admitted, *step.expired}:
                older, mine = run.asked[other], run.asked[key]
                overtaken = older.lane == mine.lane and older.arrived_at_s < mine.arrived_at_s
                assert not (overtaken and run.now_s - older.arrived_at_s >= BUDGETS.ageing_s)


@settings(deadline=None)
@given(arrivals)
def test_a_deadline_ends_a_sequence_at_the_first_step_after_it_and_no_other(arrivals: list[_Arrival]) -> None:
    run = _Run(arrivals)
    for step in run.steps():
        alive = run.waiting | run.running | set(step.expired)
        due = {key for key in alive if (at := run.asked[key].deadline_at_s) is not None and at <= run.now_s}
        assert set(step.expired) == due and not due & {rows.key for rows in step.rows}


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["a", "b", None]), st.sampled_from(["c", "a", None]), st.integers(1, 30))
def test_bulk_is_served_under_any_online_load(hot: str | None, adapter: str | None, prompt_tokens: int) -> None:
    online = [_Arrival(step, 6, 4, "a" if step % 2 else hot, "online", None) for step in range(300)]
    run = _Run([*online, _Arrival(10, prompt_tokens, 4, adapter, "bulk", None)])
    (bulk,) = (key for key, arrival in enumerate(run.arrivals) if arrival.lane == "bulk")
    for _ in run.steps():
        if bulk in run.ended:
            break
    assert run.now_s < 150


@settings(deadline=None)
@given(arrivals)
def test_no_row_of_a_step_is_left_over_while_somebody_could_use_it(arrivals: list[_Arrival]) -> None:
    """Law: work-conserving. With room in the step, a prompt is not cut short; with a slot besides, only adapters keep anybody waiting."""
    run = _Run(arrivals)
    for step in run.steps():
        used = sum(rows.count for rows in step.rows)
        if used == BUDGETS.max_num_batched_tokens:
            continue
        keys = run.running - set(step.expired) | set(step.admitted)
        ends = {rows.key: rows.start + rows.count for rows in step.rows}
        assert all(ends[key] >= run.asked[key].prompt_tokens for key in keys), "a prompt was cut although the step had room"
        adapters = {run.asked[key].adapter for key in keys} - {None}
        waiting = run.waiting - set(step.admitted) - set(step.expired)
        bare = {key for key in waiting if run.asked[key].adapter is None or run.asked[key].adapter in adapters}
        lanes = {run.asked[key].lane for key in waiting}
        assert not bare or len(keys) >= BUDGETS.max_num_seqs - BUDGETS.bulk_seqs or len(lanes) > 1 or _aged_head(run, waiting)


def _aged_head(run: _Run, waiting: set[int]) -> bool:
    """Whether somebody who needs another adapter has waited so long that nobody may pass."""
    return any(run.now_s - run.asked[key].arrived_at_s >= BUDGETS.ageing_s for key in waiting)


@settings(deadline=None)
@given(arrivals)
def test_when_all_have_left_nothing_is_remembered_of_them(arrivals: list[_Arrival]) -> None:
    run = _Run(arrivals)
    for _ in run.steps():
        pass
    for queue in run.batcher._lanes.values():
        assert not queue.in_order and not queue.by_adapter


@settings(deadline=None)
@given(arrivals, st.integers(33, 80))
def test_in_any_memory_that_holds_the_longest_everyone_has_their_turn(arrivals: list[_Arrival], memory_tokens: int) -> None:
    run = _Run(arrivals, memory_tokens=memory_tokens)
    for step in run.steps():
        for key in step.admitted:
            others = [run.asked[other] for other in run.waiting - {*step.admitted, *step.expired}]
            older = [other for other in others if other.lane == run.asked[key].lane and other.arrived_at_s < run.asked[key].arrived_at_s]
            assert all(run.now_s - other.arrived_at_s < BUDGETS.ageing_s for other in older)


def test_who_finds_no_memory_and_has_aged_holds_back_those_who_came_later_in_both_lanes() -> None:
    free = [1]

    def begin(key: int) -> int | None:
        needs = 2 if key == 0 else 1
        if needs > free[0]:
            return None
        free[0] -= needs
        return 0

    batcher = Batcher(Budgets(max_num_seqs=4, max_num_batched_tokens=10, ageing_s=5.0), begin)
    batcher.add(Waiting(0, 1, None, "bulk", 0.0))
    batcher.add(Waiting(1, 1, None, "bulk", 1.0))
    assert batcher.step(1.0).admitted == (), "no memory for 0, so for nobody in this step"
    batcher.add(Waiting(2, 1, None, "online", 2.0))
    batcher.add(Waiting(3, 1, None, "online", 2.5))
    assert batcher.step(3.0).admitted == (2,), "0 has not aged"
    free[0] = 1
    assert batcher.step(6.0).admitted == (), "3 would fit, but 0 has aged"
    free[0] = 2
    assert batcher.step(7.0).admitted == (0,)
    free[0] = 2
    assert batcher.step(8.0).admitted == (1, 3)


def test_a_running_adapter_is_preferred_to_a_new_one() -> None:
    batcher = Batcher(Budgets(max_num_seqs=2, max_num_batched_tokens=10, max_adapters=2))
    batcher.add(Waiting(0, 1, "a", "online", 0.0))
    assert batcher.step(0.0).admitted == (0,)
    batcher.add(Waiting(1, 1, "b", "online", 0.1))
    batcher.add(Waiting(2, 1, "a", "online", 0.2))
    assert batcher.step(0.3).admitted == (2,)


def test_online_is_admitted_before_bulk_that_came_first() -> None:
    batcher = Batcher(Budgets(max_num_seqs=2, max_num_batched_tokens=3))
    batcher.add(Waiting(0, 9, None, "bulk", 0.0))
    batcher.add(Waiting(1, 9, None, "online", 0.1))
    assert [rows.key for rows in batcher.step(0.2).rows] == [1, 0]


def test_a_removed_sequence_is_never_planned() -> None:
    batcher = Batcher(BUDGETS)
    for key in range(3):
        batcher.add(Waiting(key, 2, None, "online", 0.0))
    batcher.step(0.0)
    batcher.remove(1)
    batcher.remove(99)
    assert {rows.key for rows in batcher.step(1.0).rows} == {0, 2}


def test_budgets_that_cannot_keep_their_promises_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Budgets(max_num_seqs=1)
    with pytest.raises(ValueError, match="must exceed max_num_seqs"):
        Budgets(max_num_seqs=8, max_num_batched_tokens=8)


def _admitted(batcher: Batcher, now_s: float) -> tuple[int, ...]:
    return batcher.step(now_s).admitted


def test_online_leaves_one_adapter_to_bulk_that_waits() -> None:
    batcher = Batcher(Budgets(max_num_seqs=6, max_num_batched_tokens=20, max_adapters=2))
    batcher.add(Waiting(0, 1, "a", "online", 0.0))
    assert _admitted(batcher, 0.0) == (0,)
    batcher.add(Waiting(1, 1, "c", "bulk", 0.1))
    batcher.add(Waiting(2, 1, "b", "online", 0.2))
    assert _admitted(batcher, 0.3) == (1,)


def test_bulk_that_aged_without_an_adapter_to_spare_stops_online_admission_until_it_fits() -> None:
    batcher = Batcher(Budgets(max_num_seqs=6, max_num_batched_tokens=20, max_adapters=2, ageing_s=5.0))
    batcher.add(Waiting(0, 1, "a", "online", 0.0))
    batcher.add(Waiting(1, 1, "b", "online", 0.0))
    assert _admitted(batcher, 0.0) == (0, 1)
    batcher.add(Waiting(2, 1, "c", "bulk", 0.1))
    batcher.add(Waiting(3, 1, "a", "online", 0.2))
    assert _admitted(batcher, 0.3) == (3,)
    batcher.add(Waiting(4, 1, "a", "online", 0.4))
    assert _admitted(batcher, 5.2) == ()
    batcher.remove(1)
    assert _admitted(batcher, 5.3) == (4, 2)
