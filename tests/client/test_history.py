"""What an adapter was at any moment is what the catalog said then: from its events alone, over random histories of commands."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.catalog.decide import decide
from mint_stream.catalog.state import AdapterState
from mint_stream.client.history import AdapterThen, as_of
from mint_stream.client.lineage import lineage
from mint_stream.messages.adapters import AdapterCommand, AdapterEvent, Revision
from mint_stream.messages.shared import CatalogPosition
from tests.adapter_commands import BASE, announce, claim, delete, manifest, promote, quarantine, retire, roll_back, set_canary, set_rule

NUMBERS = st.integers(1, 5)
COMMANDS = st.one_of(
    st.builds(lambda n: announce("a", manifest=manifest(digest=f"{n:064x}")), st.integers(0, 99)),
    st.builds(lambda n: announce("a", promotion="manual", manifest=manifest(digest=f"{n:064x}")), st.integers(0, 99)),
    st.builds(lambda n, alias: promote("a", n, alias=alias), NUMBERS, st.sampled_from(["production", "canary"])),
    st.builds(lambda n: quarantine("a", n), NUMBERS),
    st.builds(lambda n: retire("a", n), NUMBERS),
    st.builds(lambda n: set_canary("a", n), NUMBERS),
    st.builds(lambda n: claim("a", n), st.integers(1, 3)),
    st.builds(lambda: roll_back("a")),
    st.builds(lambda: set_rule("a", "manual")),
    st.just("delete"),
)


def carried_out(history: list[Any]) -> list[tuple[int, AdapterState, tuple[AdapterEvent, ...]]]:
    """Each command with the time it was carried out at, the state after it, and what was said; two may fall into one millisecond."""
    state, told = AdapterState("a"), []
    for number, given_command in enumerate(history):
        at_ms = 1_700_000_000_000 + number // 2
        position = state.position or CatalogPosition(partition=0, offset=0)
        command: AdapterCommand = delete("a", position, force=True) if given_command == "delete" else given_command
        decision = decide(state, command, BASE, at_ms)
        state = state.after(decision, CatalogPosition(partition=0, offset=number))
        told.append((at_ms, state, decision.events))
    return told


@given(st.lists(COMMANDS, max_size=25))
@settings(max_examples=150)
def test_at_each_events_time_the_answer_is_the_state_there_was(history: list[Any]) -> None:
    told = carried_out(history)
    events = [event for _, _, said in told for event in said]
    for at_ms, state in {at_ms: state for at_ms, state, _ in told}.items():
        then = as_of(events, "a", at_ms)
        assert (then is None) == (state.head is None)
        if then is not None and state.head is not None:
            assert {alias: one.number for alias, one in then.aliases.items()} == state.head.aliases
            assert {alias: one.digest for alias, one in then.aliases.items()} == {
                alias: state.revision(number).digest for alias, number in state.head.aliases.items()
            }
            assert then.canary == state.head.canary
    assert as_of(events, "a", 1_699_999_999_999) is None
    assert as_of(events, "b", 2_000_000_000_000) is None


def test_refused_and_repeated_commands_are_no_history() -> None:
    (_, _, refused), (_, state, _) = carried_out([promote("a", 1), retire("a", 1)])
    assert state.head is None and as_of(refused, "a", 2_000_000_000_000) is None
    assert AdapterThen("a").aliases == {}


def made(number: int, parent: int | None = None, **fields: Any) -> Revision:
    return Revision(adapter_id="a", number=number, state="announced", digest="d" * 64, pool="p", announced_at_ms=1, parent=parent, **fields)


def test_a_line_of_revisions_stays_level_and_a_fork_goes_deeper() -> None:
    revisions = [made(1), made(2, 1), made(3, 2), made(4, 2, job_id="j", step=7), made(5, 4), made(9, 8)]
    tree = list(lineage(revisions))
    assert [(one.revision.number, one.depth) for one in tree] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (9, 0)]
    assert tree[1].children == (3, 4)
    assert tree[3].facts()["job_id"] == "j" and tree[3].facts()["step"] == 7


@given(st.lists(st.integers(0, 30), max_size=30))
def test_every_revision_is_in_its_tree_once_and_after_its_parent(parents: list[int]) -> None:
    revisions = [made(number, parent or None) for number, parent in enumerate(parents, 1)]
    numbers = [one.revision.number for one in lineage(revisions)]
    assert sorted(numbers) == [revision.number for revision in revisions]
    for revision in revisions:
        if revision.parent is not None and revision.parent < revision.number:
            assert numbers.index(revision.parent) < numbers.index(revision.number)


def test_a_very_long_line_is_no_recursion() -> None:
    assert len(list(lineage([made(number, number - 1 or None) for number in range(1, 5000)]))) == 4999


@pytest.mark.parametrize("kept", ["parent", "job_id", "step"])
def test_a_retired_revision_keeps_its_place_in_the_tree(kept: str) -> None:
    history = [
        claim("a", 1),
        announce("a"),
        announce("a", parent=1, job_id="job", attempt=1, step=3),
        announce("a"),
        retire("a", 2),
    ]
    *_, (_, state, _) = carried_out(history)
    stub = state.revision(2)
    assert stub.state == "retired" and getattr(stub, kept) is not None
