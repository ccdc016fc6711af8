"""What a member says of itself, what its next process remembers, and what the leader makes of it."""

import json
import logging
from pathlib import Path

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment as Assignment
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata as Metadata
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.bus.seat import Seat, SeatAssignor

TOPICS = {"online": 6, "bulk": 6, "other": 4}
JOINED, OUTSIDE = 7, -1


class Cluster:
    """Knows how many partitions a topic has."""

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return set(range(TOPICS[topic])) if topic in TOPICS else None


def member(seat: Seat, *topics: str, generation: int = JOINED) -> Metadata:
    (assignor,) = seat.assignors(lambda: generation)
    return Metadata.decode(assignor.metadata(topics or ("online", "bulk")).encode())


def assigned(members: dict[str, Metadata]) -> dict[str, dict[str, list[int]]]:
    return {name: dict(given.assignment) for name, given in SeatAssignor.assign(Cluster(), members).items()}


def given_to(seat: Seat, **partitions: list[int]) -> None:
    (assignor,) = seat.assignors(lambda: JOINED)
    assignor.on_assignment(Assignment.decode(Assignment(0, list(partitions.items()), b"").encode()))


def test_the_same_number_of_every_topic_goes_to_one_member() -> None:
    found = assigned({f"m-{name}": member(Seat(name)) for name in "abc"})
    assert all(given["online"] == given["bulk"] and len(given["online"]) == 2 for given in found.values())
    assert sorted(number for given in found.values() for number in given["online"]) == list(range(6))


def test_who_reads_other_topics_gets_only_those() -> None:
    found = assigned({"m-a": member(Seat("a"), "online"), "m-b": member(Seat("b"), "online", "other"), "m-c": member(Seat("c"), "gone")})
    assert len(found["m-a"]["online"]) == len(found["m-b"]["online"]) == 3 and found["m-b"]["other"] == [0, 1, 2, 3]
    assert found["m-c"] == {}


def test_what_a_member_has_it_keeps_and_so_does_its_next_process(tmp_path: Path) -> None:
    a, b = Seat("a", tmp_path / "a"), Seat("b", tmp_path / "b")
    given_to(a, online=[0, 3, 5], bulk=[0, 3, 5])
    given_to(b, online=[1, 2, 4], bulk=[1, 2, 4])
    kept = {"m-a": {"online": [0, 3, 5], "bulk": [0, 3, 5]}, "m-b": {"online": [1, 2, 4], "bulk": [1, 2, 4]}}
    assert assigned({"m-a": member(a), "m-b": member(b)}) == kept
    given_to(a, online=list(range(6)), bulk=list(range(6)))
    again = Seat("b", tmp_path / "b")
    assert json.loads(again.claim()) == {"name": "b", "held": False, "given": kept["m-b"]}
    assert assigned({"m-a": member(a), "m-c": member(again)}) == {"m-a": kept["m-a"], "m-c": kept["m-b"]}


def test_who_was_thrown_out_of_the_group_holds_nothing_any_more() -> None:
    a, b = Seat("a"), Seat("b")
    given_to(a, online=[0, 1, 2])
    given_to(b, online=[0, 1, 2, 3, 4, 5])
    found = assigned({"m-a": member(a, "online", generation=OUTSIDE), "m-b": member(b, "online")})
    assert found == {"m-a": {"online": [0, 1, 2]}, "m-b": {"online": [3, 4, 5]}}
    assert json.loads(a.claim())["held"] is False


def test_two_in_one_place_are_two_members() -> None:
    found = assigned({"m-1": member(Seat("a")), "m-2": member(Seat("a"))})
    assert [len(found[name]["online"]) for name in ("m-1", "m-2")] == [3, 3]


def test_a_seat_of_nobody_is_not_static_and_is_like_no_other() -> None:
    assert Seat().instance_id is None and Seat().name != Seat().name
    assert (Seat("a").instance_id, Seat("a", static=False).instance_id, Seat("a", static=False).name) == ("a", None, "a")


SAID = st.binary() | st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
).map(lambda value: json.dumps(value).encode())
GIVEN = st.fixed_dictionaries({"given": st.dictionaries(st.sampled_from(sorted(TOPICS)), st.lists(st.integers() | st.text()))})


@given(said=SAID | GIVEN.map(lambda value: json.dumps(value).encode()))
def test_whatever_a_member_says_everybody_gets_a_share(said: bytes) -> None:
    found = assigned({"m-a": member(Seat("a"), "online"), "m-x": Metadata(0, ["online"], said)})
    assert sorted(found["m-a"]["online"] + found["m-x"]["online"]) == list(range(6)) and len(found["m-x"]["online"]) == 3


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"online": 3}', b'{"online": ["x"]}'])
def test_a_memory_that_cannot_be_read_is_none(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "seat").write_bytes(content)
    assert Seat("a", tmp_path / "seat").given == {}
    assert "cannot be read" in caplog.text


def test_a_memory_that_cannot_be_kept_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seat = Seat("a", tmp_path / "gone" / "seat")
    with caplog.at_level(logging.WARNING):
        given_to(seat, online=[1])
    assert seat.given == {"online": [1]} and "cannot be kept" in caplog.text
