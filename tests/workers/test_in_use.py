"""The laws of what is kept for adapters in use, over random histories; and what they come to where more is wanted than fits."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mint_stream.workers.in_use import InUse

BUDGET, REMEMBERED = 10, 4
NAMES = st.sampled_from("abcdefg")


class AnyHistory(RuleBasedStateMachine):
    """Checks each step against the askings so far and the sizes wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.in_use = InUse(BUDGET, REMEMBERED)
        self.asked: list[str] = []
        self.wanted: dict[str, int | None] = {}

    @property
    def recent(self) -> list[str]:
        """The last ones asked for, each once, the latest first."""
        return list(dict.fromkeys(reversed(self.asked)))[:REMEMBERED]

    @rule(name=NAMES)
    def ask(self, name: str) -> None:
        before = {*self.recent}
        self.asked.append(name)
        gone = before - {*self.recent}
        assert self.in_use.ask(name) == (gone.pop() if gone else None)
        self.wanted = {one: self.wanted.get(one) for one in self.recent}

    @rule(name=NAMES, size=st.none() | st.integers(0, BUDGET + 1))
    def want(self, name: str, size: int | None) -> None:
        if name in self.in_use:
            self.in_use.want(name, size)
            self.wanted[name] = size
            assert name not in self.in_use.kept

    @rule(name=NAMES)
    def enter(self, name: str) -> None:
        if name not in self.in_use:
            return
        kept, size = self.in_use.kept, self.wanted[name]
        displaced = self.in_use.enter(name)
        if displaced is None:
            assert self.in_use.kept == kept
            assert name in kept or size is None or self.room_but_for(self.idle(name, kept)) < size
            return
        assert size is not None and {*displaced} <= self.idle(name, kept)
        assert {*self.in_use.kept} == {*kept, name} - {*displaced}
        assert not displaced or self.room_but_for({*displaced[:-1]} | {name}) < size, "one fewer would have done"

    def idle(self, name: str, kept: tuple[str, ...]) -> set[str]:
        """Not asked for since this one was asked for the time before; nobody, when it was in use only once."""
        places = [place for place, one in enumerate(self.asked) if one == name]
        uses = self.in_use._uses[name]
        return {one for one in kept if uses.before and one not in self.asked[places[-2] :]}

    def room_but_for(self, gone: set[str]) -> int:
        return BUDGET - sum(self.wanted[one] or 0 for one in self.in_use.kept if one not in gone)

    @invariant()
    def kept_are_adapters_in_use_within_the_budget(self) -> None:
        assert [name for name in "abcdefg" if name in self.in_use] == sorted(self.recent)
        assert {*self.in_use.kept} <= {*self.recent}
        assert self.in_use.kept_bytes == sum(self.wanted[name] or 0 for name in self.in_use.kept) <= BUDGET


test_any_history = AnyHistory.TestCase


def wanting(in_use: InUse, name: str) -> list[str] | None:
    """A request for an adapter that has something of 4 bytes to keep."""
    known = name in in_use
    in_use.ask(name)
    if not known:
        in_use.want(name, 4)
    return in_use.enter(name)


def test_adapters_in_a_round_do_not_displace_each_other() -> None:
    in_use = InUse(BUDGET, 100)
    given = [wanting(in_use, name) for _ in range(5) for name in "abcde"]
    assert given == [[], []] + [None] * 23 and in_use.kept == ("a", "b")


def test_one_asked_for_again_and_again_gets_the_room_of_one_that_nobody_asks_for_any_more() -> None:
    in_use = InUse(BUDGET, 100)
    given = [wanting(in_use, name) for name in "abcbcc"]
    assert given == [[], [], None, None, ["a"], None] and in_use.kept == ("b", "c")
