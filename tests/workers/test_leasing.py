"""Leasing: what is in use here is fetched ahead when it gets a new revision, what is not in use costs nothing."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.backoff import Backoff
from mint_stream.cache.device import DeviceTier
from mint_stream.cache.host import HostTier
from mint_stream.cache.loader import Loader
from mint_stream.cache.source import AdapterSource
from mint_stream.catalog import Catalog, Change, Entry
from mint_stream.errors import CorruptObject
from mint_stream.messages.adapters import Revision, revision_key
from mint_stream.messages.shared import CatalogPosition
from mint_stream.metrics import Metrics
from mint_stream.store import Store
from mint_stream.workers import leasing as module
from mint_stream.workers.following import revision_to_come
from mint_stream.workers.leasing import Leasing
from tests.cache.test_loader import GatedSource, entered
from tests.factories import LINEARS, random_weights

BLOCK_BYTES = AdapterBlock.build(random_weights()).nbytes


@pytest.fixture
def store() -> Store:
    return Store(f"memory://leasing/{uuid4().hex}")


@pytest.fixture
async def loader(store: Store) -> AsyncIterator[Loader]:
    source = AdapterSource(store, LINEARS, max_rank=8)
    loader = Loader(source, HostTier(3 * BLOCK_BYTES), DeviceTier(2 * BLOCK_BYTES), backoff=Backoff(1, 0.0))
    yield loader
    await loader.close()


@pytest.fixture
def previous() -> dict[str, Revision]:
    """What the catalog says that production was."""
    return {}


NO_WAIT = Backoff(first_s=0.0, longest_s=0.0)


@pytest.fixture
async def leasing(loader: Loader, previous: dict[str, Revision]) -> AsyncIterator[Leasing]:
    leasing = Leasing(loader, Metrics(), previous.get, again=NO_WAIT)
    yield leasing
    await leasing.close()


def publish(store: Store, adapter_id: str, number: int = 1, **changes: object) -> Revision:
    weights = random_weights(seed=100 * number + ord(adapter_id[0]))
    manifest = store.put_revision(
        weights.to_peft(), digest=weights.digest, base_digest="b" * 64, targets=weights.targets(), parameters=weights.parameters
    )
    fields = {"state": "announced", "digest": manifest.digest, "pool": "p", "uri": manifest.uri, "announced_at_ms": 0}
    return Revision(adapter_id=adapter_id, number=number, base_digest="b" * 64, **fields | changes)


async def used(leasing: Leasing, revision: Revision) -> None:
    (await leasing.lease(revision)).release()


async def test_a_new_revision_of_an_adapter_in_use_is_there_before_anybody_asks(leasing: Leasing, loader: Loader, store: Store) -> None:
    await used(leasing, publish(store, "a", 1))
    new = publish(store, "a", 2)
    await leasing.announced(new)
    assert loader.loads_total == 2
    assert new.digest in loader.device
    await used(leasing, new)
    assert (loader.loads_total, loader.hits) == (2, 1)


async def test_a_revision_of_an_adapter_nobody_uses_is_not_fetched(leasing: Leasing, loader: Loader, store: Store) -> None:
    await used(leasing, publish(store, "a"))
    await leasing.announced(publish(store, "b"))
    assert loader.loads_total == 1


@pytest.mark.parametrize("state", ["quarantined", "retired"])
async def test_what_is_out_of_service_is_not_fetched(leasing: Leasing, loader: Loader, store: Store, state: str) -> None:
    await used(leasing, publish(store, "a", 1))
    await leasing.announced(publish(store, "a", 2, state=state))
    assert loader.loads_total == 1


async def test_a_fetch_ahead_that_fails_is_told_and_left_to_the_first_request(
    leasing: Leasing, loader: Loader, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await used(leasing, publish(store, "a", 1))
    broken = publish(store, "a", 2, digest="c" * 64)
    await leasing.announced(broken)
    assert "prefetch adapter_id=a number=2 corrupt-object" in caplog.text
    with pytest.raises(CorruptObject, match="a@2"):
        await leasing.lease(broken)


async def test_the_adapters_asked_for_last_are_the_ones_remembered(leasing: Leasing, loader: Loader, store: Store) -> None:
    oldest = publish(store, "oldest")
    await used(leasing, oldest)
    others = [oldest.model_copy(update={"adapter_id": f"other-{number}"}) for number in range(module.RECENT - 1)]
    for revision in others:
        await used(leasing, revision)
    await used(leasing, oldest)  # once more: now `other-0` is the oldest
    await used(leasing, oldest.model_copy(update={"adapter_id": "one-more"}))
    before = loader.loads_total
    await leasing.announced(publish(store, "other-0", 2))
    assert loader.loads_total == before
    await leasing.announced(publish(store, "oldest", 2))
    assert loader.loads_total == before + 1


def test_what_is_announced_or_becomes_a_canary_is_what_is_fetched_ahead(store: Store) -> None:
    revision = publish(store, "a", 2)
    here = CatalogPosition(partition=0, offset=7)
    with Catalog(None, 1) as catalog:
        catalog.apply(0, [Entry(revision_key("a", 2), revision.encode(), 0)], 1)
        announced = Change("announced", "a", here, 2, revision=revision)
        begun, ended = Change("canary-set", "a", here, 2), Change("canary-set", "a", here, None, 2)
        moved = Change("alias-moved", "a", here, 2, None, "production")
        coming = [revision_to_come(catalog, change) for change in (announced, begun, ended, moved)]
    assert coming == [revision, revision, None, None]


async def test_an_adapter_whose_load_fails_counts_as_asked_for(leasing: Leasing, loader: Loader, store: Store) -> None:
    with pytest.raises(CorruptObject):
        await leasing.lease(publish(store, "a", 1, digest="c" * 64))
    await leasing.announced(mended := publish(store, "a", 2))
    assert mended.digest in loader.device


async def test_what_production_was_is_kept_for_a_roll_back_when_the_adapter_is_in_use(
    leasing: Leasing, loader: Loader, store: Store
) -> None:
    previous, unused = publish(store, "a", 1), publish(store, "b", 1)
    await used(leasing, previous)
    await loader.prefetch(unused)
    leasing.keep("a", previous)
    leasing.keep("b", unused)
    for number in range(2, 8):
        await used(leasing, publish(store, "c", number))
    assert previous.digest in loader.host
    assert unused.digest not in loader.host
    leasing.keep("a", None)
    for number in range(8, 12):
        await used(leasing, publish(store, "c", number))
    assert previous.digest not in loader.host


async def test_what_production_was_is_fetched_when_an_adapter_is_first_asked_for(
    leasing: Leasing, loader: Loader, store: Store, previous: dict[str, Revision]
) -> None:
    """As after a restart: its alias moved before this worker lived."""
    previous["a"] = publish(store, "a", 1)
    await used(leasing, publish(store, "a", 2))
    while previous["a"].digest not in loader.host:
        await asyncio.sleep(0)
    for number in range(2, 8):
        await used(leasing, publish(store, "c", number))
    assert previous["a"].digest in loader.host


async def test_nothing_is_kept_for_adapters_that_are_not_remembered_any_more(
    leasing: Leasing, loader: Loader, store: Store, previous: dict[str, Revision]
) -> None:
    one = publish(store, "one")
    for number in range(module.RECENT + 10):
        previous[f"a{number}"] = one
        await used(leasing, one.model_copy(update={"adapter_id": f"a{number}"}))
    assert len(loader.host.kept) == module.RECENT and "a9" not in loader.host.kept


@asynccontextmanager
async def leasing_of(
    source: AdapterSource, previous: Mapping[str, Revision] | None = None, host_blocks: int = 3
) -> AsyncIterator[tuple[Leasing, Loader]]:
    """Leasing with a loader of its own, which fails at the first failure of its source."""
    loader = Loader(source, HostTier(host_blocks * BLOCK_BYTES), DeviceTier(2 * BLOCK_BYTES), backoff=Backoff(1, 0.0))
    leasing = Leasing(loader, Metrics(), (previous or {}).get, again=NO_WAIT)
    yield leasing, loader
    await leasing.close()


async def test_what_production_was_has_a_share_of_the_host_tier_and_no_more_is_fetched_for_it(store: Store) -> None:
    names = [f"{letter}dapter" for letter in "abcdefghijklmnopqrst"]
    previous = {name: publish(store, name, 1, size_bytes=BLOCK_BYTES) for name in names}
    async with leasing_of(AdapterSource(store, LINEARS, max_rank=8), previous, host_blocks=8) as (leasing, loader):
        revisions = [publish(store, name, 2) for name in names]
        for revision in revisions:
            await used(leasing, revision)
        assert {*loader.host.kept} == {*names[:2]}, "a quarter of eight"
        while leasing._aside:
            await asyncio.sleep(0)
        assert loader.loads_total == len(names) + 2
        for _ in range(2):
            await used(leasing, revisions[-1])
        while previous[names[-1]].digest not in loader.host:
            await asyncio.sleep(0)
        assert {*loader.host.kept} == {names[1], names[-1]}, "asked for again, it displaced the one that nobody asked for since"


async def test_what_is_kept_is_fetched_until_the_store_gives_it(store: Store) -> None:
    """Nobody asks for what is pinned, so nobody else would try again."""
    source = GatedSource(store, failures=20)
    async with leasing_of(source) as (leasing, loader):
        leasing.pin("p", revision := publish(store, "p"))
        while revision.digest not in loader.host:
            await asyncio.sleep(0)
        assert loader.loads_total == 21


async def test_what_is_not_to_be_kept_any_more_is_not_fetched_again(store: Store) -> None:
    source = GatedSource(store, failures=10**6)
    async with leasing_of(source) as (leasing, loader):
        leasing.pin("p", publish(store, "p", 1))
        await entered(source, 2)
        leasing.pin("p", None)
        while leasing._aside:
            await asyncio.sleep(0)
        assert not loader.host.kept


async def test_what_is_broken_is_fetched_once_however_much_it_is_to_be_kept(store: Store) -> None:
    async with leasing_of(AdapterSource(store, LINEARS, max_rank=8)) as (leasing, loader):
        leasing.pin("p", publish(store, "p", digest="c" * 64))
        while leasing._aside:
            await asyncio.sleep(0)
        assert loader.loads_total == 1


async def test_closing_ends_whatever_is_fetched_ahead_and_nothing_is_from_then_on(store: Store) -> None:
    source = GatedSource(store)
    async with leasing_of(source) as (leasing, _):
        await used(leasing, publish(store, "a", 1))
        source.gate.clear()
        leasing.coming(publish(store, "a", 2))
        leasing.pin("p", publish(store, "p"))
        await entered(source, 2)
        closing = asyncio.create_task(leasing.close())
        await asyncio.sleep(0)
        source.gate.set()
        await closing
        assert not leasing._aside
        leasing.coming(publish(store, "a", 3))
        leasing.pin("q", publish(store, "q"))
        assert not leasing._aside


async def test_closing_gives_up_what_is_being_loaded(store: Store) -> None:
    source = GatedSource(store)
    source.gate.clear()
    leasing = Leasing(Loader(source, HostTier(BLOCK_BYTES), DeviceTier(BLOCK_BYTES)), Metrics(), {}.get)
    waiting = asyncio.create_task(leasing.lease(publish(store, "a")))
    await entered(source)
    await leasing.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    source.gate.set()


async def test_announcements_at_once_are_one_load_a_revision(leasing: Leasing, loader: Loader, store: Store) -> None:
    await used(leasing, publish(store, "a", 1))
    new = publish(store, "a", 2)
    await asyncio.gather(*(leasing.announced(new) for _ in range(10)), used(leasing, new))
    assert loader.loads_total == 2


async def test_a_pinned_adapter_is_in_the_host_tier_unasked_and_outlives_what_is_used(
    leasing: Leasing, loader: Loader, store: Store
) -> None:
    first, second = publish(store, "p", 1), publish(store, "p", 2)
    leasing.pin("p", first)
    while first.digest not in loader.host:
        await asyncio.sleep(0)
    for number in range(2, 8):
        await used(leasing, publish(store, "c", number))
    assert first.digest in loader.host
    await leasing.announced(second)
    assert second.digest in loader.host, "its new revision is fetched although nobody asked for the adapter"
    leasing.pin("p", second)
    for number in range(8, 14):
        await used(leasing, publish(store, "c", number))
    assert second.digest in loader.host and first.digest not in loader.host


async def test_an_adapter_is_pinned_before_it_has_a_production_revision(leasing: Leasing, loader: Loader, store: Store) -> None:
    leasing.pin("p", None)
    await leasing.announced(revision := publish(store, "p", 1))
    assert revision.digest in loader.host


async def test_the_tiers_tell_what_was_looked_for_and_what_was_there(leasing: Leasing, loader: Loader, store: Store) -> None:
    revision = publish(store, "a", 1)
    await used(leasing, revision)
    await used(leasing, revision)
    device, host, below = leasing.tiers()
    assert (device.tier, device.hits, device.misses, device.loads) == ("device", 1, 1, 1)
    assert (host.tier, host.hits, host.misses, below.tier, below.hits) == ("host", 0, 1, "store", 1)
    assert device.used_bytes == host.used_bytes == BLOCK_BYTES and device.budget_bytes == 2 * BLOCK_BYTES
    exposition = loader.device.tally.metrics.exposition().decode()
    assert 'mint_tier_lookups_total{kind="device",outcome="hit"} 1.0' in exposition
    assert f'mint_tier_resident_bytes{{kind="device"}} {float(BLOCK_BYTES)}' in exposition
