"""The laws of ByteLru, over random histories."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.cache.byte_lru import ByteLru

BUDGET = 20
KEYS = st.integers(0, 9)


class AnyHistory(RuleBasedStateMachine):
    """Checks each step against an obvious model: a list in order of use, a count of leases."""

    def __init__(self) -> None:
        super().__init__()
        self.lru: ByteLru[int] = ByteLru(BUDGET)
        self.order: list[tuple[int, int]] = []
        self.leases: Counter[int] = Counter()
        self.kept: set[int] = set()

    def _used(self, key: int) -> None:
        entry = next(entry for entry in self.order if entry[0] == key)
        self.order.remove(entry)
        self.order.append(entry)

    @rule(key=KEYS, size=st.integers(0, BUDGET + 1))
    def add(self, key: int, size: int) -> None:
        """Evicts the least recently used, never a leased one, kept ones last, no more than needed, and nothing when it cannot be let in."""
        leased_bytes = sum(held for one, held in self.order if self.leases[one])
        here = any(one == key for one, _ in self.order)
        assert self.lru.fits(size) == (leased_bytes + size <= BUDGET)
        if here or leased_bytes + size > BUDGET:
            with pytest.raises(ValueError, match=r"."):
                self.lru.add(key, size)
            return
        expected = []
        candidates = [
            entry for wanted in (False, True) for entry in self.order if (entry[0] in self.kept) == wanted and not self.leases[entry[0]]
        ]
        while sum(held for _, held in self.order) + size > BUDGET:
            victim = candidates.pop(0)
            self.order.remove(victim)
            expected.append(victim[0])
        assert self.lru.add(key, size) == expected
        self.order.append((key, size))

    @rule(key=KEYS)
    def touch(self, key: int) -> None:
        here = any(one == key for one, _ in self.order)
        assert self.lru.touch(key) == here
        if here:
            self._used(key)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([one for one, _ in self.order]))
        self.lru.lease(key)
        self.leases[key] += 1
        self._used(key)

    @precondition(lambda self: +self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(+self.leases)))
        self.lru.release(key)
        self.leases[key] -= 1
        self._used(key)

    @rule(keys=st.sets(KEYS))
    def keep(self, keys: set[int]) -> None:
        self.lru.keep(keys)
        self.kept = keys

    @invariant()
    def the_order_is_that_of_use_and_the_budget_holds(self) -> None:
        assert self.lru.keys() == [key for key, _ in self.order]
        assert self.lru.used_bytes == sum(size for _, size in self.order) <= BUDGET
        assert self.lru.free_bytes() == BUDGET - self.lru.used_bytes
        assert all(key in self.lru for key in +self.leases)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@settings(deadline=None)
@given(st.lists(st.integers(1, BUDGET), min_size=1))
def test_without_leases_everything_that_fits_the_budget_gets_in(sizes: list[int]) -> None:
    lru: ByteLru[int] = ByteLru(BUDGET)
    for key, size in enumerate(sizes):
        lru.add(key, size)
        assert key in lru


def test_what_is_kept_outlives_what_was_used_since() -> None:
    lru: ByteLru[str] = ByteLru(3)
    for key in ("previous", "a", "b"):
        lru.add(key, 1)
    lru.keep({"previous"})
    assert lru.add("c", 1) == ["a"]
    assert lru.add("big", 3) == ["b", "c", "previous"]
