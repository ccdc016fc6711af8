"""The registrar on a real broker: commands in, a catalog and events out, whatever breaks in between."""

import asyncio
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Outgoing
from mint_stream.bus.table import LogRecord
from mint_stream.bus.topic_facts import topic_facts
from mint_stream.errors import NoProductionRevision, OwnershipLost
from mint_stream.messages.adapters import AdapterCommand
from tests.adapter_commands import NOW_MS, announce, claim, manifest, promote, quarantine, retire, roll_back, set_rule
from tests.kafka.test_fetching import write_bad
from tests.registrar_ground import Ground

pytestmark = pytest.mark.kafka

LATER_MS = 4_000_000_000_000
"""Issued in the future, so that no announce is ever too old."""


@pytest.fixture(autouse=True)
def leave_no_failed_futures() -> Iterator[None]:
    """aiokafka never reads some futures it fails when fenced: their complaint is printed here, not amid another test."""
    yield
    gc.collect()


@pytest.fixture
async def ground(connection: Connection, topic_prefix: str) -> Ground:
    return await Ground.create(connection, topic_prefix)


def fresh(adapter_id: str, **fields: object) -> AdapterCommand:
    return announce(adapter_id, issued_at_ms=LATER_MS, **fields)


def read(*commands: AdapterCommand) -> list[LogRecord]:
    return [LogRecord(command.adapter_id.encode(), command.encode(), (), offset, NOW_MS) for offset, command in enumerate(commands)]


def here(ground: Ground, partition: int = 0) -> str:
    return next(name for name in (f"adapter-{n}" for n in range(100)) if ground.home(name) == partition)


async def test_commands_become_a_catalog_at_another_reader(ground: Ground) -> None:
    commands = [
        fresh("a"),
        fresh("a"),
        fresh("b", promotion="manual"),
        promote("a", 1),
        roll_back("a"),
        quarantine("a", 1),
        claim("c", 1),
        fresh("c", job_id="job", attempt=1, step=10),
        retire("a", 1),
        set_rule("b", "auto"),
        retire("b", 7),
    ]
    async with ground.registrar():
        await ground.give(*commands)
        answers = await ground.answers(*commands)
    types = [events[0].type for events in answers]
    assert types == [
        "revision-announced",
        "revision-announced",
        "revision-announced",
        "alias-moved",
        "alias-moved",
        "revision-quarantined",
        "claim-granted",
        "revision-announced",
        "revision-retired",
        "rule-set",
        "command-rejected",
    ]
    with await ground.catalog() as catalog:
        assert catalog.resolve("a").number == 2
        assert catalog.resolve("b@candidate").number == 1
        assert catalog.resolve("c").job_id == "job"
        with pytest.raises(NoProductionRevision):
            catalog.resolve("b")


async def test_an_event_names_the_position_of_the_head_it_speaks_of(ground: Ground) -> None:
    first, second, refused = fresh("a"), fresh("a"), promote("a", 9)
    async with ground.registrar():
        await ground.give(first, second, refused)
        answers = await ground.answers(first, second, refused)
    places = [event.catalog_position for events in answers[:2] for event in events]
    with await ground.catalog() as catalog:
        assert places[-1] == catalog.head_position("a")
        await catalog.reached(places[0])
    assert places[0].offset < places[-1].offset
    assert answers[2][0].catalog_position is None


async def test_a_repeated_command_and_a_repeated_step_change_nothing(ground: Ground) -> None:
    granted = claim("a", 1)
    once = fresh("a", job_id="job", attempt=1, step=5)
    again = fresh("a", job_id="job", attempt=1, step=5)
    async with ground.registrar():
        await ground.give(granted, once, granted, once, again)
        answers = await ground.answers(granted, once, again)
    assert [event.type for event in answers[0]] == ["claim-granted", "command-repeated"]
    assert answers[0][1].attempt == 1
    assert [event.type for event in answers[1]] == ["revision-announced", "alias-moved", "alias-moved", "command-repeated"]
    assert [(event.type, event.number) for event in answers[2]] == [("command-repeated", 1)]
    with await ground.catalog() as catalog:
        assert len(catalog.revisions("a")) == 1


async def test_six_to_seven_and_back_to_six_is_seen(ground: Ground) -> None:
    setting = [fresh("a", promotion="manual"), fresh("a"), promote("a", 1)]
    async with ground.registrar():
        await ground.give(*setting)
        seen = (await ground.answers(setting[-1]))[0][0].catalog_position
        there_and_back = [promote("a", 2), promote("a", 1)]
        await ground.give(*there_and_back)
        await ground.answers(*there_and_back)
        late = promote("a", 2, expected_position=seen)
        await ground.give(late)
        refused = (await ground.answers(late))[0][0]
    assert refused.type == "command-rejected"
    assert "stands at" in refused.reason


async def test_a_bad_record_is_set_aside_and_a_stray_sent_home(ground: Ground) -> None:
    mine, stray = fresh(here(ground, 0)), fresh(here(ground, 1))
    broken = Outgoing(ground.topics.commands, b"k", b'{"type":"claim"', (("h", b"\xff\xfe"),), 0)
    empty = Outgoing(ground.topics.commands, b"k", None, (), 0)
    async with ground.registrar():
        await ground.publish(broken, empty, ground.record(stray, partition=0), ground.record(mine))
        answers = await ground.answers(mine, stray)
    assert [events[0].type for events in answers] == ["revision-announced"] * 2
    letters = {record.value: dict(record.headers) for record in await ground.records(f"{ground.topics.commands}-dlq")}
    assert set(letters) == {broken.value, None}
    assert letters[broken.value]["h"] == b"\xff\xfe"
    assert letters[broken.value]["mint_error_code"] == b"invalid-record"
    homes = [record for record in await ground.records(ground.topics.commands) if record.value == stray.encode()]
    assert len(homes) == 2
    with await ground.catalog() as catalog:
        assert catalog.head_position(stray.adapter_id).partition == 1


async def test_a_header_name_that_is_not_utf8_closes_no_partition_of_the_catalog(ground: Ground) -> None:
    mine = fresh(here(ground, 0))
    await write_bad(ground.connection, ground.topics.commands, 0)
    async with ground.registrar():
        await ground.give(mine)
        answers = await ground.answers(mine)
    assert answers[0][0].type == "revision-announced"
    assert {record.value for record in await ground.records(f"{ground.topics.commands}-dlq")} == {b"before", b"bad", b"after"}


async def test_what_no_pool_can_serve_is_refused_with_the_reason(ground: Ground) -> None:
    unknown = fresh("a", pool="nowhere")
    foreign = fresh("b", manifest=manifest(base_digest="e" * 64))
    async with ground.registrar():
        await ground.give(unknown, foreign)
        answers = await ground.answers(unknown, foreign)
    assert [events[0].type for events in answers] == ["command-rejected"] * 2
    assert "start a serving worker" in answers[0][0].reason


async def test_a_writer_that_was_replaced_writes_nothing_visible(ground: Ground) -> None:
    adapter = here(ground)
    async with ground.writer(0) as zombie:
        await zombie.write(read(fresh(adapter)), ground.prefix)
        async with ground.writer(0) as owner:
            with pytest.raises(OwnershipLost):
                await zombie.write(read(fresh(adapter)), ground.prefix)
            await owner.write(read(fresh(adapter)), ground.prefix)
    with await ground.catalog() as catalog:
        assert [revision.number for revision in catalog.revisions(adapter)] == [1, 2]
    assert len([event for event in await ground.events() if event.type == "revision-announced"]) == 2


async def test_an_owner_replaced_in_the_middle_of_a_transaction_leaves_nothing(ground: Ground) -> None:
    adapter = here(ground)
    half = ground.open_producer(0)
    await half.start()
    await half.begin()
    await (await half.send_raw(Outgoing(ground.topics.revisions, f"{adapter}/1".encode(), b"half", partition=0)))
    async with ground.writer(0) as owner:
        await owner.write(read(fresh(adapter)), ground.prefix)
    with pytest.raises(OwnershipLost):
        await half.commit()
    await half.stop()
    assert b"half" in [record.value for record in await ground.records(ground.topics.revisions, committed=False)]
    with await ground.catalog() as catalog:
        assert catalog.resolve(adapter).number == 1


async def test_two_registrars_share_the_partitions_and_one_goes_on_alone(ground: Ground) -> None:
    names = [here(ground, 0), here(ground, 1)]
    first = [fresh(name) for name in names]
    second = [fresh(name) for name in names]
    async with ground.registrar():
        async with ground.registrar():
            await ground.give(*first)
            await ground.answers(*first)
        await ground.give(*second)
        answers = await ground.answers(*second)
    assert [events[0].number for events in answers] == [2, 2]


async def test_a_restarted_registrar_continues_from_its_copy(ground: Ground, tmp_path: Path) -> None:
    first, second = fresh("a"), fresh("a")
    for command in (first, second):
        async with ground.registrar(tmp_path / "catalog"):
            await ground.give(command)
            answer = (await ground.answers(command))[0][0]
    assert answer.number == 2


async def test_a_topic_created_anew_has_another_id(ground: Ground) -> None:
    one, other = await asyncio.gather(*(topic_facts(ground.connection, name) for name in (ground.topics.revisions, ground.topics.events)))
    assert one.topic_id != other.topic_id
    assert one.delete_retention_ms == 86_400_000
    assert one == await topic_facts(ground.connection, ground.topics.revisions)


async def killed_after(ground: Ground, effect: str, copy: Path) -> int:
    """Run a registrar in a process of its own that kills itself with -9 right after its first such effect; its exit status."""
    arguments = [ground.connection.bootstrap_servers, ground.prefix, effect, str(copy)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.workers.registrar_process", *arguments, cwd=Path(__file__).parents[2]
    )
    return await process.wait()


@pytest.mark.timeout(120)
async def test_killed_between_any_two_effects_every_command_has_one_outcome(ground: Ground, tmp_path: Path) -> None:
    adapter = here(ground)
    given: list[AdapterCommand] = []
    for effect in ("begin", "revision", "head", "event", "offsets", "commit", "copy"):
        commands = [fresh(adapter) for _ in range(2)]
        given += commands
        await ground.give(*commands)
        assert await killed_after(ground, effect, tmp_path / "catalog") == -9
    async with ground.registrar():
        answers = await ground.answers(*given)
    outcomes = [[event for event in events if event.type != "alias-moved"] for events in answers]
    assert [[event.type for event in events] for events in outcomes] == [["revision-announced"]] * len(given)
    assert [outcome.number for [outcome] in outcomes] == list(range(1, len(given) + 1)), "in order, numbers dense"
    with await ground.catalog() as catalog:
        assert [revision.number for revision in catalog.revisions(adapter)] == list(range(1, len(given) + 1))
        assert catalog.resolve(adapter).number == len(given)
