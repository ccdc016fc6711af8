"""Deleting adapters on a real broker: tombstones, what readers see, compaction, and the next adapter of the same name."""

from collections import Counter
from pathlib import Path

import pytest

from mint_stream.bus.connection import Connection
from mint_stream.catalog import Catalog
from mint_stream.errors import UnknownAdapter
from mint_stream.messages.adapters import AdapterCommand, AdapterEvent, head_key, revision_key, spent_key
from tests.adapter_commands import announce, claim, delete
from tests.registrar_ground import Ground
from tests.workers.test_registrar_more import COMPACTED

pytestmark = pytest.mark.kafka

LATER_MS = 4_000_000_000_000


def fresh(adapter_id: str, **fields: object) -> AdapterCommand:
    return announce(adapter_id, issued_at_ms=LATER_MS, **fields)


async def told(ground: Ground, *commands: AdapterCommand) -> list[AdapterEvent]:
    """The first event of each."""
    await ground.give(*commands)
    return [events[0] for events in await ground.answers(*commands)]


async def test_a_deleted_adapter_is_gone_for_readers_that_had_it_and_for_new_ones(connection: Connection, topic_prefix: str) -> None:
    ground = await Ground.create(connection, topic_prefix, partitions=1)
    seen: list[str] = []
    async with ground.registrar():
        *_, last = await told(ground, fresh("a"), fresh("a"), fresh("b"), fresh("a", promotion="manual"))
        with await ground.catalog() as early:
            early.subscribe(lambda change: seen.append(f"{change.kind} {change.adapter_id}"))
            refused, gone = await told(ground, delete("a", position(early, "a")), delete("a", position(early, "a"), force=True))
            await ground.read(ground.topics.revisions, early.apply)
            await early.reached(gone.catalog_position)
            assert "deleted a" in seen
            assert_gone(early, "a")
            assert early.resolve("b").number == 1
    assert refused.type == "command-rejected" and "force" in refused.reason
    assert (gone.type, gone.next_number) == ("adapter-deleted", last.number + 1)
    with await ground.catalog() as late:
        assert_gone(late, "a")


def position(catalog: Catalog, adapter_id: str) -> object:
    return catalog.head_position(adapter_id)


def assert_gone(catalog: Catalog, adapter_id: str) -> None:
    with pytest.raises(UnknownAdapter):
        catalog.resolve(adapter_id)
    assert adapter_id not in list(catalog.adapters())
    assert catalog.revisions(adapter_id) == []


async def test_deleted_and_made_anew_within_one_transaction(connection: Connection, topic_prefix: str, tmp_path: Path) -> None:
    """All commands lie in the log before the registrar comes, so it carries them out together."""
    ground = await Ground.create(connection, topic_prefix, partitions=1)
    async with ground.registrar(tmp_path):
        made, other = await told(ground, fresh("a"), fresh("b"))
    late = delete("a", made.catalog_position, force=True)
    given = [
        late,
        fresh("a", promotion="manual"),
        late.model_copy(update={"command_id": "resent"}),
        claim("a", 1),
        delete("b", other.catalog_position, force=True),
        claim("b", 1),
    ]
    async with ground.registrar(tmp_path):
        events = await told(ground, *given)
    assert [event.type for event in events[:4]] == ["adapter-deleted", "revision-announced", "command-rejected", "claim-granted"]
    assert "stands at" in events[2].reason, "a delete that comes late does not end the one that was made since"
    assert [event.type for event in events[4:]] == ["adapter-deleted", "claim-granted"]
    with await ground.catalog() as catalog:
        assert [revision.number for revision in catalog.revisions("a")] == [2]
        assert catalog.head("b").first_number == 2 and catalog.revisions("b") == []


@pytest.mark.timeout(120)
@pytest.mark.long
async def test_after_compaction_nothing_is_left_of_it_but_its_history(connection: Connection, topic_prefix: str, tmp_path: Path) -> None:
    ground = await Ground.create(connection, topic_prefix, partitions=1, revisions=COMPACTED)
    async with ground.registrar(tmp_path / "one"):
        *_, last = await told(ground, fresh("kept"), *[fresh("a") for _ in range(3)])
        with await ground.catalog() as catalog:
            await told(ground, delete("a", position(catalog, "a"), force=True))
        await cleaned(ground, {head_key("kept"), revision_key("kept", 1), spent_key(0)})
    assert last.number == 3
    history = [event.type for event in await ground.events() if event.adapter_id == "a"]
    assert history.count("revision-announced") == 3 and history[-1] == "adapter-deleted"
    async with ground.registrar(tmp_path / "another"):  # knows only what the compacted log says
        (again,) = await told(ground, fresh("a"))
    assert again.number == 4
    with await ground.catalog() as catalog:
        assert [revision.number for revision in catalog.revisions("a")] == [4]
        assert catalog.resolve("kept").number == 1


async def cleaned(ground: Ground, live: set[bytes]) -> None:
    """Roll the segment by one more command, and read, until each key of `live` is there once and no other, but for the rolling ones."""
    own = f"{ground.prefix}-rolling/".encode()
    while True:
        await told(ground, fresh(f"{ground.prefix}-rolling"))
        left = Counter(record.key for record in await ground.records(ground.topics.revisions) if not (record.key or b"").startswith(own))
        if left == dict.fromkeys(live, 1):
            return
