"""The laws of who works on what: level, the same for the same, as it was where it can be."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.bus.seating import Claim, Seats, seats

NAMES = st.sampled_from([f"worker-{letter}" for letter in "abcdefgh"])
FLEETS = st.sets(NAMES, min_size=1)
COUNTS = st.integers(0, 40)


def held(found: Seats) -> dict[str, Claim]:
    return {name: Claim(frozenset(numbers), held=True) for name, numbers in found.items()}


def owners(found: Seats) -> dict[int, str]:
    return {number: name for name, numbers in found.items() for number in numbers}


def moved(before: Seats, after: Seats) -> dict[int, tuple[str, str]]:
    was, now = owners(before), owners(after)
    return {number: (was[number], now[number]) for number in was if was[number] != now[number]}


def left(found: Seats, name: str) -> dict[str, Claim]:
    return {other: claim for other, claim in held(found).items() if other != name}


@st.composite
def fleets(draw: st.DrawFn) -> tuple[int, Seats]:
    """A group as it is after members have come and gone in any order."""
    count = draw(COUNTS)
    found = seats(dict.fromkeys(draw(FLEETS), Claim()), range(count))
    for name in draw(st.lists(NAMES, max_size=8)):
        claims = left(found, name) if name in found and len(found) > 1 else {**held(found), name: Claim()}
        found = seats(claims, range(count))
    return count, found


@given(
    claims=st.dictionaries(NAMES, st.builds(Claim, st.frozensets(st.integers(0, 45)), st.booleans()), min_size=1),
    count=COUNTS,
    order=st.randoms(use_true_random=False),
)
def test_whatever_is_claimed_every_number_has_one_member_and_shares_differ_by_one_at_most(
    claims: Mapping[str, Claim], count: int, order: object
) -> None:
    found = seats(claims, range(count))
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(count))
    sizes = [len(numbers) for numbers in found.values()]
    assert set(found) == set(claims) and max(sizes) - min(sizes) <= 1
    shuffled = list(claims)
    order.shuffle(shuffled)
    assert seats({name: claims[name] for name in shuffled}, list(reversed(range(count)))) == found
    assert seats(held(found), range(count)) == found, "nothing moves when nobody comes or goes"


@given(fleet=fleets(), gone=NAMES)
def test_when_somebody_leaves_only_its_numbers_move(fleet: tuple[int, Seats], gone: str) -> None:
    count, before = fleet
    claims = left(before, gone)
    if claims:
        assert set(moved(before, seats(claims, range(count)))) == set(before.get(gone, ()))


@given(fleet=fleets(), come=NAMES, remembered=st.frozensets(st.integers(0, 45)))
def test_when_somebody_comes_numbers_move_only_to_it(fleet: tuple[int, Seats], come: str, remembered: frozenset[int]) -> None:
    count, before = fleet
    if come not in before:
        after = seats({**held(before), come: Claim(remembered)}, range(count))
        assert {now for _, now in moved(before, after).values()} <= {come}
        assert len(moved(before, after)) == len(after[come]) <= -(-count // len(after)), "no more than its share"


@given(fleet=fleets())
def test_after_a_restart_one_by_one_everybody_has_what_it_had(fleet: tuple[int, Seats]) -> None:
    count, before = fleet
    found = before
    for name in before:
        if len(before) > 1:
            mine, without = found[name], seats(left(found, name), range(count))
            found = seats({**held(without), name: Claim(frozenset(mine))}, range(count))
    assert found == before


@given(count=COUNTS, names=FLEETS, gone=st.sets(NAMES))
def test_several_that_were_away_at_once_have_theirs_back_when_all_are_there(count: int, names: set[str], gone: set[str]) -> None:
    before = seats(dict.fromkeys(names, Claim()), range(count))
    gone = gone & names
    if gone and gone < names:
        without = seats({name: claim for name, claim in held(before).items() if name not in gone}, range(count))
        back = {name: Claim(frozenset(before[name])) for name in gone}
        assert seats({**held(without), **back}, range(count)) == before


def test_a_worker_that_took_anothers_place_for_good_keeps_what_it_has() -> None:
    """The one that was away for a month gets a share of what has to move anyway, and no more."""
    before = seats(dict.fromkeys("abd", Claim()), range(32))
    after = seats({**held(before), "c": Claim(frozenset(before["d"]))}, range(32))
    assert len(moved(before, after)) == 8 and {now for _, now in moved(before, after).values()} == {"c"}


def test_nobody_in_a_group_has_nothing() -> None:
    assert seats({}, range(3)) == {}
    assert seats({"a": Claim(), "b": Claim()}, ()) == {"a": (), "b": ()}
