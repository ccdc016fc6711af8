"""The canary: who falls to it, what ends it, and what a name means beside it."""

from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.catalog import Catalog, Change, Entry
from mint_stream.catalog.canary import draw, falls_to
from mint_stream.catalog.fold import plain_production
from mint_stream.messages.adapters import AdapterCommand, Canary, Head, Revision, RevisionState, head_key, revision_key
from tests.adapter_commands import announce, promote, quarantine, retire, roll_back, set_canary, set_rule
from tests.catalog.test_decide import Desk

NAMES = st.tuples(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
SHARES = st.integers(1, 10_000)
FIRST, SECOND = Canary(number=2, share_basis_points=2500), Canary(number=3, share_basis_points=1)


@given(request=NAMES, share=SHARES, larger=SHARES)
def test_who_falls_to_a_canary_falls_to_it_at_every_larger_share(request: tuple[str, str], share: int, larger: int) -> None:
    small, large = (Canary(number=2, share_basis_points=points) for points in sorted((share, larger)))
    assert falls_to(large, request) >= falls_to(small, request)
    assert falls_to(Canary(number=9, share_basis_points=share), request) == falls_to(Canary(number=2, share_basis_points=share), request)


def test_a_share_is_the_share_of_many_requests() -> None:
    fallen = sum(falls_to(FIRST, ("tenant", f"r-{number}")) for number in range(20_000))
    assert 4_750 < fallen < 5_250, "2,500 of 10,000, within four standard deviations"
    assert not any(falls_to(Canary(number=2, share_basis_points=1), ("t", f"r-{number}")) for number in range(500))


def test_a_lot_is_the_same_in_every_process_and_version() -> None:
    assert [draw(("default", f"r-{number}")) for number in range(4)] == [7504, 8087, 4949, 2462], "a retry may meet a newer worker"
    assert draw(("a", "b/c")) != draw(("b", "a/c"))


ALIASES = st.sampled_from(["production", "preproduction", "previous", "spread", "canary", "rule", "x"])


@given(
    aliases=st.dictionaries(ALIASES, st.integers(1, 99)),
    spread=st.integers(1, 8),
    canary=st.none() | st.just(FIRST),
    rule=st.sampled_from(["auto", "manual", "gated"]),
)
def test_a_head_that_is_not_decoded_says_what_it_says_decoded_or_nothing(
    aliases: dict[str, int], spread: int, canary: Canary | None, rule: Literal["auto", "manual", "gated"]
) -> None:
    head = Head(adapter_id="a", pool="p", next_number=100, aliases=aliases, rule=rule, canary=canary, spread=spread)
    wanted = (aliases["production"], spread) if canary is None and "production" in aliases else None
    assert plain_production(head.encode()) == wanted


@pytest.fixture
def desk() -> Desk:
    """Revision 1 is production, 2 and 3 are announced."""
    desk = Desk()
    desk.accept(announce("a", promotion="auto"), set_rule("a", "manual"), announce("a"), announce("a"))
    return desk


def test_a_canary_is_set_changed_and_ended_by_command(desk: Desk) -> None:
    began = desk.accept(set_canary("a", 2, 2500))
    assert [(event.type, event.canary, event.previous) for event in began.events] == [("canary-set", FIRST, None)]
    assert desk.head.canary == FIRST
    changed = desk.accept(set_canary("a", 3, 1))
    assert (changed.events[0].canary, changed.events[0].previous, desk.head.canary) == (SECOND, FIRST, SECOND)
    ended = desk.accept(set_canary("a", None))
    assert (ended.events[0].canary, ended.events[0].previous, desk.head.canary) == (None, SECOND, None)


def test_only_an_announced_revision_beside_another_production_can_be_a_canary(desk: Desk) -> None:
    desk.accept(retire("a", 3))
    assert "no revision 7" in desk.refuse(set_canary("a", 7))
    assert "retired" in desk.refuse(set_canary("a", 3))
    assert "production itself" in desk.refuse(set_canary("a", 1))
    desk.accept(quarantine("a", 1))
    assert "no production" in desk.refuse(set_canary("a", 2))
    assert "no adapter" in Desk().refuse(set_canary("a", 2))


def test_a_canary_set_from_a_position_left_behind_is_refused(desk: Desk) -> None:
    seen = desk.state.position
    desk.accept(set_rule("a", "gated"))
    assert "look again" in desk.refuse(set_canary("a", 2, expected_position=seen))
    desk.accept(set_canary("a", 2, expected_position=desk.state.position))


@pytest.mark.parametrize("command", [quarantine("a", 2), retire("a", 2), promote("a", 2), quarantine("a", 1)], ids=lambda one: one.type)
def test_a_canary_ends_when_it_goes_out_of_service_or_becomes_production_or_production_is_gone(desk: Desk, command: AdapterCommand) -> None:
    desk.accept(set_canary("a", 2, 2500))
    last = desk.accept(command).events[-1]
    assert (last.type, last.canary, last.previous, last.command_id) == ("canary-set", None, FIRST, command.command_id)
    assert desk.head.canary is None


def test_a_roll_back_to_the_canary_ends_it(desk: Desk) -> None:
    desk.accept(promote("a", 2), promote("a", 1), set_canary("a", 2), roll_back("a"))
    assert (desk.head.aliases["production"], desk.head.canary) == (2, None)


def test_what_does_not_touch_a_canary_leaves_it(desk: Desk) -> None:
    desk.accept(set_canary("a", 2, 2500), promote("a", 3), announce("a"), promote("a", 4, alias="candidate"), quarantine("a", 4))
    assert desk.head.canary == FIRST


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog(None, 1) as made:
        yield made


def written(catalog: Catalog, canary: Canary | None, second: RevisionState = "announced") -> None:
    """Revisions 1 (production) and 2, and a head with this canary."""
    states: tuple[RevisionState, ...] = ("announced", second)
    rows = [
        (revision_key("a", number), Revision(adapter_id="a", number=number, state=state, digest="d" * 64, pool="p", announced_at_ms=1))
        for number, state in enumerate(states, 1)
    ]
    head = Head(adapter_id="a", pool="p", next_number=3, aliases={"production": 1, "candidate": 2}, canary=canary)
    start = catalog.positions().get(0, 0)
    entries = [Entry(key, record.encode(), start + n) for n, (key, record) in enumerate([*rows, (head_key("a"), head)])]
    catalog.apply(0, entries, start + len(entries))


REQUESTS = [("default", f"r-{number}") for number in range(200)]


def chosen(catalog: Catalog, reference: str) -> list[tuple[int, bool]]:
    found = [catalog.choose(reference, request) for request in REQUESTS]
    return [(choice.revision.number, choice.canary) for choice in found]


@pytest.mark.parametrize("reference", ["a", "a@production"])
def test_a_request_for_production_is_answered_by_the_canary_when_it_falls_to_it(catalog: Catalog, reference: str) -> None:
    written(catalog, FIRST)
    assert chosen(catalog, reference) == [(2, True) if falls_to(FIRST, request) else (1, False) for request in REQUESTS]
    assert {number for number, _ in chosen(catalog, reference)} == {1, 2}


@pytest.mark.parametrize(("reference", "number"), [("a@1", 1), ("a@2", 2), ("a@candidate", 2)])
def test_who_names_a_revision_or_another_alias_gets_that(catalog: Catalog, reference: str, number: int) -> None:
    written(catalog, Canary(number=2, share_basis_points=10_000))
    assert set(chosen(catalog, reference)) == {(number, False)}


@pytest.mark.parametrize(("canary", "second"), [(None, "announced"), (FIRST, "quarantined"), (FIRST, "retired")])
def test_without_a_canary_that_can_be_served_production_answers_everything(
    catalog: Catalog, canary: Canary | None, second: RevisionState
) -> None:
    written(catalog, canary, second)
    assert set(chosen(catalog, "a")) == {(1, False)}


def test_subscribers_are_told_of_a_canary_that_begins_and_ends(catalog: Catalog) -> None:
    told: list[Change] = []
    written(catalog, None)
    catalog.subscribe(told.append)
    for canary in (FIRST, FIRST, None):
        written(catalog, canary)
    assert [(change.kind, change.number, change.previous_number) for change in told] == [("canary-set", 2, None), ("canary-set", None, 2)]
