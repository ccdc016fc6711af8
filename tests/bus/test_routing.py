"""Where requests go: homes that grow without moving, requests that stay where they were, load that is level."""

import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.bus.routing import BULK_BLOCK, Routing, bulk_home, home_of, homes
from mint_stream.messages.inference import InferenceRequest, InferenceResult
from tests.echo_serving import WIDE, WIDTH, answer_to

IDS = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,12}", fullmatch=True)
PARTITIONS = st.integers(1, 64)
SPREADS = st.integers(1, 80)


@given(adapter_id=IDS, partitions=PARTITIONS, spread=SPREADS)
def test_the_homes_of_a_spread_begin_with_those_of_every_smaller_one(adapter_id: str, partitions: int, spread: int) -> None:
    found = homes(adapter_id, spread, partitions)
    assert len(found) == len(set(found)) == min(spread, partitions) and set(found) <= set(range(partitions))
    assert homes(adapter_id, spread + 1, partitions)[:spread] == found


@given(adapter_id=IDS, partitions=PARTITIONS)
def test_the_first_home_is_where_a_plain_producer_puts_the_adapters_key(adapter_id: str, partitions: int) -> None:
    assert homes(adapter_id, 1, partitions) == (murmur2_partition(adapter_id.encode(), partitions),)


@given(adapter_id=IDS, request_id=IDS, partitions=PARTITIONS, spread=SPREADS)
def test_a_request_keeps_its_home_or_moves_to_the_one_that_was_added(
    adapter_id: str, request_id: str, partitions: int, spread: int
) -> None:
    before, after = (home_of(adapter_id, ("t", request_id), width, partitions) for width in (spread, spread + 1))
    assert before in homes(adapter_id, spread, partitions)
    assert after in {before, homes(adapter_id, spread + 1, partitions)[-1]}


def test_adapters_and_their_further_homes_are_level_over_the_partitions() -> None:
    firsts = Counter(homes(f"adapter-{number}", 1, 32)[0] for number in range(6_400))
    thirds = Counter(homes(f"adapter-{number}", 3, 32)[2] for number in range(6_400))
    for counts in (firsts, thirds):
        assert len(counts) == 32 and min(counts.values()) > 120 and max(counts.values()) < 280, "200 each, give or take"


def test_the_requests_of_a_spread_adapter_are_level_over_its_homes() -> None:
    counts = Counter(home_of("hot", ("t", f"r-{number}"), 4, 32) for number in range(4_000))
    assert set(counts) == set(homes("hot", 4, 32)) and min(counts.values()) > 850 and max(counts.values()) < 1_150


def test_a_home_is_the_same_in_every_process() -> None:
    asked = (
        "from mint_stream.bus.routing import *; print(homes('hot', 5, 32), home_of('hot', ('t', 'r'), 5, 32), bulk_home('hot', 300, 32))"
    )
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert told == f"{homes('hot', 5, 32)} {home_of('hot', ('t', 'r'), 5, 32)} {bulk_home('hot', 300, 32)}\n"


@given(adapter_id=IDS, partitions=PARTITIONS)
def test_bulk_begins_where_the_online_requests_are_and_reaches_every_partition_block_by_block(adapter_id: str, partitions: int) -> None:
    blocks = [bulk_home(adapter_id, block * BULK_BLOCK, partitions) for block in range(partitions)]
    assert blocks[0] == homes(adapter_id, 1, partitions)[0] and sorted(blocks) == list(range(partitions))
    assert bulk_home(adapter_id, BULK_BLOCK - 1, partitions) == blocks[0]
    assert bulk_home(adapter_id, partitions * BULK_BLOCK, partitions) == blocks[0]


def asked(adapter: str | None, number: int = 0) -> InferenceRequest:
    return InferenceRequest(request_id=f"r-{number}", prompt="p", adapter=adapter)


def answered(adapter: str, spread: int) -> InferenceResult:
    result = answer_to(asked(adapter))
    assert result.served_by is not None
    return result.model_copy(update={"served_by": result.served_by.model_copy(update={"spread": spread})})


def test_who_was_told_of_a_spread_uses_it_until_told_otherwise() -> None:
    routing, wide = Routing(), set(homes("a", 3, 32))

    def used() -> set[int]:
        return {routing.online(asked("a@production", number), 32) for number in range(100)}

    assert used() == {homes("a", 1, 32)[0]}
    routing.learn(answered("a", 3))
    assert used() == wide
    assert routing.online(asked("b"), 32) == homes("b", 1, 32)[0], "of its own adapter only"
    routing.learn(answered("a", 1))
    assert used() == {homes("a", 1, 32)[0]}


def test_an_answer_of_the_bare_base_or_an_error_teaches_nothing() -> None:
    routing = Routing()
    for adapter in (None, "unknown"):
        routing.learn(answer_to(asked(adapter)))
    assert routing.online(asked(None), 32) == murmur2_partition(b"r-0", 32)
    assert answer_to(asked(WIDE)).served_by.spread == WIDTH


def test_bulk_requests_are_counted_by_adapter() -> None:
    routing = Routing()
    found = [routing.bulk(asked("a"), 32) for _ in range(BULK_BLOCK + 1)]
    assert [key for key, _ in found] == ["a#0"] * BULK_BLOCK + ["a#1"]
    assert [home for _, home in found] == [bulk_home("a", number, 32) for number in range(BULK_BLOCK + 1)]
    assert routing.bulk(asked("b"), 32) == ("b#0", homes("b", 1, 32)[0])
