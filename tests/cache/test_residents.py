"""The laws of the tiers' policy, over random histories; and that it finds more of what is asked for than LRU does."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mint_stream.cache import Residents
from tests.cache import traces
from tests.cache.byte_lru import ByteLru

BUDGET = 20
KEYS = st.integers(0, 9)


class AnyHistory(RuleBasedStateMachine):
    """Checks each step against what must hold whatever the policy prefers: a set of sizes, a count of leases."""

    def __init__(self) -> None:
        super().__init__()
        self.residents: Residents[int] = Residents(BUDGET)
        self.sizes: dict[int, int] = {}
        self.leases: Counter[int] = Counter()
        self.kept: set[int] = set()

    @property
    def leased_bytes(self) -> int:
        return sum(size for key, size in self.sizes.items() if self.leases[key])

    @rule(key=KEYS, size=st.integers(0, BUDGET + 1))
    def add(self, key: int, size: int) -> None:
        """Evicts no leased entry, kept ones only when no other is left, one no more than needed, and nothing for what cannot be let in."""
        assert self.residents.fits(size) == (self.leased_bytes + size <= BUDGET)
        if key in self.sizes or self.leased_bytes + size > BUDGET:
            with pytest.raises(ValueError, match=r"."):
                self.residents.add(key, size)
            return
        self.gone(self.residents.add(key, size), BUDGET - size)
        self.sizes[key] = size

    def gone(self, evicted: list[int], room: int) -> None:
        for key in evicted:
            assert sum(self.sizes.values()) > room, "there was room already"
            assert not self.leases[key]
            others = {one for one in self.sizes if not self.leases[one] and one not in self.kept}
            assert key not in self.kept or not others
            del self.sizes[key]

    @rule()
    def evict_one(self) -> None:
        free = {key for key in self.sizes if not self.leases[key]}
        key = self.residents.evict_one()
        assert (key in free) if free else (key is None)
        if key is not None:
            assert key not in self.kept or free <= self.kept
            del self.sizes[key]

    @rule(key=KEYS)
    def touch(self, key: int) -> None:
        assert self.residents.touch(key) == (key in self.sizes)
        assert key not in self.sizes or self.residents.keys()[-1] == key

    @rule(key=KEYS)
    def discard(self, key: int) -> None:
        self.residents.discard(key)
        if not self.leases[key]:
            self.sizes.pop(key, None)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.sizes)))
        self.residents.lease(key)
        self.leases[key] += 1

    @precondition(lambda self: +self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(+self.leases)))
        self.residents.release(key)
        self.leases[key] -= 1

    @rule(keys=st.sets(KEYS))
    def keep(self, keys: set[int]) -> None:
        self.residents.keep(keys)
        self.kept = keys

    @invariant()
    def it_holds_what_it_says_within_the_budget(self) -> None:
        assert sorted(self.residents.keys()) == sorted(self.sizes)
        assert self.residents.used_bytes == sum(self.sizes.values()) <= BUDGET
        assert self.residents.leased_bytes == self.leased_bytes
        assert self.residents._trial_bytes == sum(self.sizes[key] for key in self.residents._trial)
        assert self.residents._gone_bytes == sum(self.residents._gone.values()) <= BUDGET
        assert not self.residents._gone.keys() & self.sizes.keys()


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@settings(deadline=None)
@given(st.lists(st.integers(1, BUDGET), min_size=1))
def test_without_leases_everything_that_fits_the_budget_gets_in(sizes: list[int]) -> None:
    residents: Residents[int] = Residents(BUDGET)
    for key, size in enumerate(sizes):
        residents.add(key, size)
        assert key in residents


def test_what_is_kept_outlives_what_was_used_since() -> None:
    residents: Residents[str] = Residents(3)
    for key in ("previous", "a", "b"):
        residents.add(key, 1)
    residents.keep({"previous"})
    assert residents.add("c", 1) == ["a"]
    assert residents.add("big", 3) == ["b", "c", "previous"]


def test_what_is_kept_outlives_newcomers_that_were_looked_at_meanwhile() -> None:
    residents: Residents[str] = Residents(100)
    residents.keep({"K"})
    for key, size in (("K", 70), ("x", 30), ("y", 10)):
        if not residents.fits(size) or size > residents.free_bytes():
            residents.make_room(size)
        residents.add(key, size)
    residents.touch("y")
    assert residents.add("z", 25) == ["y"]


def test_what_was_used_twice_outlives_a_scan_and_what_is_not_used_any_more_goes_in_the_end() -> None:
    residents: Residents[int] = Residents(20)
    for _ in range(2):
        traces.hits(residents, range(10))
    traces.hits(residents, range(1000, 1100))
    assert sum(key in residents for key in range(10)) >= 5, "a scan of five budgets takes one a budget"
    for _ in range(5):
        traces.hits(residents, range(100, 120))
    assert not any(key in residents for key in range(10))


def test_nothing_stays_for_ever_because_it_was_used_once() -> None:
    residents: Residents[int] = Residents(3)
    traces.hits(residents, [0, 0, 0, 0, *range(10, 40)])
    assert 0 not in residents


def test_what_is_asked_for_again_soon_after_it_left_is_no_newcomer() -> None:
    residents: Residents[int] = Residents(10)
    traces.hits(residents, range(11))  # 0 has left
    traces.hits(residents, [0, *range(20, 28)])
    assert 0 in residents


NAMES, ASKED = 20_000, 100_000
TRACES = {
    "zipf": traces.zipf(NAMES, ASKED),
    "scans": traces.with_scans(NAMES, ASKED),
    "shifting": traces.shifting(NAMES, ASKED),
    "drifting": traces.drifting(NAMES, ASKED),
}
SIZES = {"alike": lambda _key: 1, "ranks 1 to 8": lambda key: 1 + key % 8}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("trace", "more"), [("zipf", 1.08), ("scans", 1.14), ("shifting", 1.0), ("drifting", 1.05)])
def test_it_finds_more_than_lru(trace: str, more: float, sizes: str) -> None:
    """A twentieth of the names has room. `more`: the hits of ours over LRU's, at least."""
    size = SIZES[sizes]
    budget = sum(map(size, range(NAMES))) // 20
    ours, lru = traces.hits(Residents(budget), TRACES[trace], size), traces.hits(ByteLru(budget), TRACES[trace], size)
    assert ours >= more * lru, (ours / ASKED, lru / ASKED)
