"""Who computes what in the next step. Pure: time comes in as an argument, the result is a value."""

import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
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

    by_adapter: OrderedDict[Hashable | None, deque[Waiting]] = field(default_factory=OrderedDict)
    in_order: deque[Waiting] = field(default_factory=deque)

    def add(self, waiting: Waiting) -> None:
        self.in_order.append(waiting)
        self.by_adapter.setdefault(waiting.adapter, deque()).append(waiting)


class Batcher:
    """Continuous batching: every running sequence advances in every step, prefill chunks fill what decode rows leave.

    Admission prefers sequences whose adapter already runs, as long as nobody older has waited `ageing_s`.
    """

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self._waiting: dict[int, Waiting] = {}
        self._running: dict[int, _Running] = {}
        self._lanes: dict[Lane, _Queue] = {"online": _Queue(), "bulk": _Queue()}
        self._deadlines: list[tuple[float, int]] = []

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
        self._waiting.pop(key, None)
        self._running.pop(key, None)

    def step(self, now_s: float) -> Step:
        """Plan the next pass. The rows planned count as computed."""
        expired = tuple(self._expire(now_s))
        rows = [_advance(running, 1) for running in self._running.values() if not running.prompt_left]
        left = self.budgets.max_num_batched_tokens - len(rows)
        admitted: list[int] = []
        bulk_needs = self._oldest("bulk") is not None or any(running.prompt_left for running in self._of("bulk"))
        kept = min(left, self.budgets.bulk_tokens) if bulk_needs else 0
        left = kept + self._prefill("online", left - kept, rows, admitted, now_s)
        self._prefill("bulk", left, rows, admitted, now_s)
        return Step(tuple(rows), tuple(admitted), expired)

    def _prefill(self, lane: Lane, left: int, rows: list[Rows], admitted: list[int], now_s: float) -> int:
        """Spend up to `left` rows on the lane's prompts, running ones first, then newly admitted ones. What is left is returned."""
        started = [running for running in self._of(lane) if running.prompt_left]
        while left > 0 and (running := started.pop(0) if started else self._admit(lane, admitted, now_s)) is not None:
            rows.append(_advance(running, min(left, running.prompt_left)))
            left -= rows[-1].count
        return left

    def _admit(self, lane: Lane, admitted: list[int], now_s: float) -> _Running | None:
        chosen = self._choose_online(now_s) if lane == "online" else self._choose_bulk(now_s)
        if chosen is None:
            return None
        del self._waiting[chosen.key]
        self._running[chosen.key] = running = _Running(chosen)
        admitted.append(chosen.key)
        return running

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
            heads = (self._head(lane, adapter) for adapter in (None, *self._active))
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
        return self._trim(self._lanes[lane].in_order)

    def _head(self, lane: Lane, adapter: Hashable | None) -> Waiting | None:
        queue = self._lanes[lane].by_adapter.get(adapter)
        if queue is None:
            return None
        head = self._trim(queue)
        if head is None:
            del self._lanes[lane].by_adapter[adapter]
        return head

    def _trim(self, queue: deque[Waiting]) -> Waiting | None:
        """The first of the queue that still waits; those that left are dropped."""
        while queue and self._waiting.get(queue[0].key) is not queue[0]:
            queue.popleft()
        return queue[0] if queue else None


def _advance(running: _Running, count: int) -> Rows:
    rows = Rows(running.waiting.key, running.computed, count, running.computed + count >= running.waiting.prompt_tokens)
    running.computed += count
    return rows
