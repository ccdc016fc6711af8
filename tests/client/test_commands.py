"""Commands to the real registrar: each returns the event that answers it, or raises the registrar's reason."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.client import Client
from mint_stream.errors import CommandRejected, InvalidRequest, ReplyTimeout
from mint_stream.messages.adapters import Canary
from tests.adapter_commands import BASE, manifest, target
from tests.registrar_ground import Ground

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="session")
async def registrar(fleet: Connection) -> AsyncIterator[None]:
    """A registrar of the fleet's own topics, and the base of pool `tiny`."""
    producer = Producer(fleet, source="test")
    await producer.start()
    await producer.publish(contracts.BASE_MODELS, BASE, BASE.pool)
    await producer.stop()
    async with Ground.of_fleet(fleet).registrar():
        yield


@pytest.mark.usefixtures("registrar")
class TestWithARegistrar:
    async def test_an_announce_makes_a_revision_and_says_where_it_stands(self, client: Client, unique: str):
        event = await client.announce(unique, manifest(), promotion="auto")
        assert (event.type, event.number) == ("revision-announced", 1)
        view = await client.adapter(unique)
        assert (view.production, view.position) == (1, event.catalog_position)

    async def test_promote_and_roll_back_move_production(self, client: Client, unique: str):
        await client.announce(unique, manifest(), promotion="manual")
        await client.announce(unique, manifest(digest="e" * 64))
        assert (await client.promote(unique, 1)).number == 1
        moved = await client.promote(unique, 2)
        assert (moved.type, moved.alias, moved.number, moved.previous_number) == ("alias-moved", "production", 2, 1)
        back = await client.rollback(unique)
        assert (back.number, back.cause) == (1, "roll-back")
        view = await client.adapter(unique)
        assert (view.production, view.head.rule) == (1, "manual")

    async def test_a_promotion_from_a_stale_position_is_refused_with_the_reason(self, client: Client, unique: str):
        await client.announce(unique, manifest())
        seen = (await client.adapter(unique)).position
        await client.promote(unique, 1, expected_position=seen)
        with pytest.raises(CommandRejected, match="look again"):
            await client.promote(unique, 1, expected_position=seen)

    async def test_a_refused_command_raises_the_registrars_reason(self, client: Client, unique: str):
        with pytest.raises(CommandRejected, match=unique):
            await client.promote(unique, 3)
        with pytest.raises(CommandRejected, match="rank"):
            await client.announce(unique, manifest(target(rank=64)))

    async def test_the_same_command_id_again_changes_nothing(self, client: Client, unique: str):
        first = await client.announce(unique, manifest(), command_id=f"{unique}-1")
        again = await client.announce(unique, manifest(), command_id=f"{unique}-1")
        assert (again.type, again.number) == ("command-repeated", first.number)
        assert len((await client.adapter(unique)).revisions) == 1

    async def test_a_command_sent_twice_at_once_is_carried_out_once_and_answered_twice(self, client: Client, unique: str):
        sends = (client.announce(unique, manifest(), command_id=f"{unique}-1", timeout_s=30) for _ in range(2))
        answers = await asyncio.gather(*sends)
        assert [answer.command_id for answer in answers] == [f"{unique}-1"] * 2
        assert {answer.number for answer in answers} == {1}
        assert len((await client.adapter(unique)).revisions) == 1

    async def test_rules_and_retirement(self, client: Client, unique: str):
        await client.announce(unique, manifest())
        assert (await client.set_rule(unique, "manual")).rule == "manual"
        await client.announce(unique, manifest(digest="e" * 64))
        retired = await client.retire(unique, 2)
        assert (retired.type, retired.number) == ("revision-retired", 2)
        assert [revision.state for revision in (await client.adapter(unique)).revisions] == ["announced", "retired"]

    async def test_a_canary_begins_and_ends(self, client: Client, unique: str):
        for digest in "ef":
            await client.announce(unique, manifest(digest=digest * 64), promotion="manual")
        await client.promote(unique, 1)
        canary = Canary(number=2, share_basis_points=500)
        seen = (await client.adapter(unique)).position
        began = await client.set_canary(unique, canary, expected_position=seen)
        assert (began.type, began.canary) == ("canary-set", canary)
        with pytest.raises(CommandRejected, match="look again"):
            await client.set_canary(unique, None, expected_position=seen)
        assert (await client.adapter(unique)).head.canary == canary
        ended = await client.set_canary(unique, None)
        assert (ended.canary, ended.previous) == (None, canary)

    async def test_a_spread_is_set(self, client: Client, unique: str):
        await client.announce(unique, manifest())
        assert (await client.set_spread(unique, 4)).spread == 4
        assert (await client.adapter(unique)).head.spread == 4
        with pytest.raises(InvalidRequest):
            await client.set_spread(unique, 0)

    async def test_many_commands_at_once_each_get_their_own_answer(self, client: Client, unique: str):
        names = [f"{unique}-{n}" for n in range(20)]
        events = await asyncio.gather(*(client.announce(name, manifest()) for name in names))
        assert [event.adapter_id for event in events] == names

    async def test_registrars_of_the_fleet_are_one_writer(self, client: Client, fleet: Connection, unique: str):
        async with Ground.of_fleet(fleet).registrar(), client.revisions(unique) as events:
            await client.announce(unique, manifest(), promotion="manual")
            for rule in ("auto", "manual", "auto"):
                await client.set_rule(unique, rule)
            told = [await anext(events) for _ in range(5)]
        assert [getattr(event, "rule", event.type) for event in told] == ["revision-announced", "alias-moved", "auto", "manual", "auto"]

    async def test_a_subscriber_sees_the_announce_and_the_move_it_caused(self, client: Client, unique: str):
        async with client.revisions(unique) as events:
            await client.announce(unique, manifest())
            assert [(await anext(events)).type for _ in range(2)] == ["revision-announced", "alias-moved"]


async def test_without_a_registrar_the_error_says_so(client: Client, unique: str):
    """An answer cannot come in no time at all: that is what a registrar that is not there looks like."""
    with pytest.raises(ReplyTimeout, match=rf"adapter {unique}.*mint-stream register"):
        await client.promote(unique, 1, timeout_s=0)


@pytest.mark.parametrize(("adapter_id", "alias", "number"), [("a b", "production", 1), ("a", "", 1), ("a", "production", 0)])
async def test_what_is_no_command_is_refused_before_it_is_sent(client: Client, adapter_id: str, alias: str, number: int):
    with pytest.raises(InvalidRequest):
        await client.promote(adapter_id, number, alias)
