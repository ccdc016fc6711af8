"""Who computes what in the next step. Pure: time comes in as an argument, the result is a value."""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

from mint_stream.engine.budgets import Budgets, Rows, Step, Waiting
from mint_stream.engine.generation import Lane

__all__ = ["Batcher", "Budgets", "Rows", "Step", "Waiting"]


@dataclass
class _Running:
    waiting: Waiting
    computed: int = 0

    @property
    def prompt_left(self) -> int:
        return max(0, self.waiting.prompt_tokens - self.computed)


@dataclass
class _Queue:
    """One lane's waiting sequences: in order of arrival, in all and by adapter."""

    by_adapter: dict[Hashable | None, OrderedDict[int, Waiting]] = field(default_factory=dict)
    in_order: OrderedDict[int, Waiting] = field(default_factory=OrderedDict)

    def add(self, waiting: Waiting) -> None:
        self.in_order[waiting.key] = waiting
        self.by_adapter.setdefault(waiting.adapter, OrderedDict())[waiting.key] = waiting

    def remove(self, waiting: Waiting) -> None:
        """Law: an adapter without waiting sequences leaves nothing behind."""
        del self.in_order[waiting.key]
        of_adapter = self.by_adapter[waiting.adapter]
        del of_adapter[waiting.key]
        if not of_adapter:
            del self.by_adapter[waiting.adapter]

    def oldest(self) -> Waiting | None:
        """Who came first."""
        return next(iter(self.in_order.values()), None)

    def oldest_of(self, adapter: Hashable | None) -> Waiting | None:
        """Who came first of those that ask for `adapter`."""
        return next(iter(self.by_adapter.get(adapter, {}).values()), None)


@dataclass
class _Plan:
    """The rows of a step so far, one entry a sequence."""

    left: int
    rows: dict[int, Rows] = field(default_factory=dict)
    admitted: list[int] = field(default_factory=list)
    out_of_memory: bool = False

    def advance(self, running: _Running, count: int) -> None:
        """`count` more rows for this sequence."""
        waiting, known = running.waiting, self.rows.get(running.waiting.key)
        start = known.start if known is not None else running.computed
        running.computed += count
        self.left -= count
        self.rows[waiting.key] = Rows(waiting.key, start, running.computed - start, running.computed >= waiting.prompt_tokens)


class Batcher:
    """Continuous batching: every running sequence advances in every step, prefill chunks fill what decode rows leave.

    Admission prefers sequences whose adapter already runs, as long as nobody older has waited `ageing_s`.
    """

    def __init__(self, budgets: Budgets, begin: Callable[[int], int | None] = lambda _: 0) -> None:
        """`begin(key)` is called when a sequence may have a slot, and gives how many of its prompt's tokens are computed already.

        That is less than all: the prompt's last token has to be computed to draw the next one. None: there is no memory for it now. Then
        nobody else is admitted in this step, and once it has waited `ageing_s` nobody who came later, until there is.
        """
        self.budgets = budgets
        self._begin = begin
        self._waiting: dict[int, Waiting] = {}
        self._running: dict[int, _Running] = {}
        self._lanes: dict[Lane, _Queue] = {"online": _Queue(), "bulk": _Queue()}
        self._deadlines: list[tuple[float, int]] = []
        self._short: Waiting | None = None
        """Who came first of those who found no memory."""

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    def add(self, waiting: Waiting) -> None:
        """Queue a sequence."""
        self._waiting[waiting.key] = waiting
        self._lanes[waiting.lane].add(waiting)
        if waiting.deadline_at_s is not None:
            heapq.heappush(self._deadlines, (waiting.deadline_at_s, waiting.key))

    def remove(self, key: int) -> None:
        """Forget a sequence, finished or cancelled, waiting or running. Unknown keys are ignored."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._lanes[waiting.lane].remove(waiting)
        self._running.pop(key, None)

    def step(self, now_s: float) -> Step:
        """Plan the next pass. The rows planned count as computed."""
        expired = tuple(self._expire(now_s))
        plan = _Plan(self.budgets.max_num_batched_tokens)
        for running in self._running.values():
            if not running.prompt_left:
                plan.advance(running, 1)
        bulk_needs = self._oldest("bulk") is not None or any(running.prompt_left for running in self._of("bulk"))
        self._prefill("online", plan, now_s, kept=self.budgets.bulk_tokens if bulk_needs else 0)
        planned = None
        while planned != plan.left:  # what one lane leaves, or makes fit by an adapter it brings, is the other's
            planned = plan.left
            self._prefill("bulk", plan, now_s)
            self._prefill("online", plan, now_s)
        return Step(tuple(plan.rows.values()), tuple(plan.admitted), expired)

    def _prefill(self, lane: Lane, plan: "_Plan", now_s: float, kept: int = 0) -> None:
        """Spend the rows that are left, but for those kept, on the lane's prompts, running ones first, then newly admitted ones."""
        started = [running for running in self._of(lane) if running.prompt_left]
        while plan.left > kept and (running := started.pop(0) if started else self._admit(lane, plan, now_s)) is not None:
            plan.advance(running, min(plan.left - kept, running.prompt_left))

    def _admit(self, lane: Lane, plan: "_Plan", now_s: float) -> _Running | None:
        chosen = self._choose_online(now_s) if lane == "online" else self._choose_bulk(now_s)
        if chosen is None or plan.out_of_memory or self._must_wait(chosen, now_s):
            return None
        computed = self._begin(chosen.key)
        if computed is None:
            plan.out_of_memory = True
            if self._short is None or self._short.key not in self._waiting or chosen.arrived_at_s < self._short.arrived_at_s:
                self._short = chosen
            return None
        del self._waiting[chosen.key]
        self._lanes[lane].remove(chosen)
        self._running[chosen.key] = running = _Running(chosen, computed)
        plan.admitted.append(chosen.key)
        return running

    def _must_wait(self, chosen: Waiting, now_s: float) -> bool:
        """Whether somebody who came earlier, and has aged, is still without memory."""
        short = self._short
        if short is None or short.key not in self._waiting:
            return False
        return self._aged(short, now_s) and chosen.arrived_at_s > short.arrived_at_s

    def _of(self, lane: Lane) -> list[_Running]:
        return [running for running in self._running.values() if running.waiting.lane == lane]

    def _expire(self, now_s: float) -> Iterator[int]:
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, key = heapq.heappop(self._deadlines)
            if key in self._waiting or key in self._running:
                self.remove(key)
                yield key

    def _choose_online(self, now_s: float) -> Waiting | None:
        """The next online sequence to admit. While bulk waits, it keeps its floor of slots, and one adapter when none of it runs."""
        oldest_bulk = self._oldest("bulk")
        bulk_runs = len(self._of("bulk"))
        owed = self.budgets.bulk_seqs - bulk_runs if oldest_bulk is not None else 0
        if self._free <= max(0, owed):
            return None
        starving = oldest_bulk is not None and bulk_runs == 0
        if (
            starving
            and oldest_bulk is not None
            and self._aged(oldest_bulk, now_s)
            and not self._fits(oldest_bulk, self.budgets.max_adapters)
        ):
            return None
        return self._choose("online", self.budgets.max_adapters - starving, now_s)

    def _choose_bulk(self, now_s: float) -> Waiting | None:
        return self._choose("bulk", self.budgets.max_adapters, now_s) if self._free > 0 else None

    def _choose(self, lane: Lane, max_adapters: int, now_s: float) -> Waiting | None:
        """The oldest if it has aged; else the oldest whose adapter runs already; else the oldest if another adapter fits."""
        oldest = self._oldest(lane)
        if oldest is None:
            return None
        if not self._aged(oldest, now_s):
            heads = (self._lanes[lane].oldest_of(adapter) for adapter in (None, *self._active))
            alike = min((head for head in heads if head is not None), key=lambda head: head.arrived_at_s, default=None)
            if alike is not None:
                return alike
        return oldest if self._fits(oldest, max_adapters) else None

    @property
    def _free(self) -> int:
        return self.budgets.max_num_seqs - len(self._running)

    @property
    def _active(self) -> set[Hashable]:
        return {running.waiting.adapter for running in self._running.values() if running.waiting.adapter is not None}

    def _fits(self, waiting: Waiting, max_adapters: int) -> bool:
        active = self._active
        return waiting.adapter is None or waiting.adapter in active or len(active) < max_adapters

    def _aged(self, waiting: Waiting, now_s: float) -> bool:
        return now_s - waiting.arrived_at_s >= self.budgets.ageing_s

    def _oldest(self, lane: Lane) -> Waiting | None:
        return self._lanes[lane].oldest()
