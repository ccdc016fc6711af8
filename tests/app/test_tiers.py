"""The serve role's tiers: where the disk tier lies, that zero bytes are none, and that pinned adapters are held from the start on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mint_stream.app.serve import ServeRole
from mint_stream.app.serve_parts import loader, pool_base
from mint_stream.app.workplace import Workplace
from mint_stream.bus.connection import Connection
from mint_stream.cache import AdapterSource, DeviceTier, HostTier, Loader
from mint_stream.catalog import Catalog, Entry
from mint_stream.messages.adapters import Head, Revision, head_key, revision_key
from mint_stream.metrics import Metrics
from mint_stream.model.base import load_base
from mint_stream.settings import Settings
from mint_stream.store import Store
from mint_stream.workers.following import previous_in
from mint_stream.workers.leasing import Leasing
from tests.factories import LINEARS, random_weights, tiny_base


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog(None, partitions=1) as catalog:
        yield catalog


def announce(catalog: Catalog, store: Store, number: int, offset: int) -> Revision:
    """Adapter `p` gets a revision, which becomes its production."""
    weights = random_weights(seed=number)
    manifest = store.put_revision(
        weights.to_peft(), digest=weights.digest, base_digest="b" * 64, targets=weights.targets(), parameters=weights.parameters
    )
    revision = Revision(
        adapter_id="p",
        number=number,
        state="announced",
        digest=manifest.digest,
        pool="x",
        uri=manifest.uri,
        base_digest="b" * 64,
        announced_at_ms=0,
    )
    head = Head(adapter_id="p", pool="x", next_number=number + 1, aliases={"production": number})
    rows = [Entry(revision_key("p", number), revision.encode(), offset), Entry(head_key("p"), head.encode(), offset + 1)]
    catalog.apply(0, rows, offset + 2)
    return revision


async def test_what_is_pinned_is_held_from_the_start_and_as_production_moves(catalog: Catalog, tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path, serving={"pinned_adapters": ("p", "not yet there")})
    store = Store((tmp_path / "store").as_uri())
    first = announce(catalog, store, 1, offset=0)
    tiers = Loader(AdapterSource(store, LINEARS, max_rank=8), HostTier(2**20), DeviceTier(2**20))
    leasing = Leasing(tiers, Metrics(), previous_in(catalog))
    with Workplace(tmp_path, "serve") as workplace:
        ServeRole(settings, Connection("nowhere:1"), Metrics(), workplace)._follow(catalog, leasing)
        assert tiers.host.kept["p@production"] == first.digest and "not yet there@production" not in tiers.host.kept
        second = announce(catalog, store, 2, offset=2)
        assert tiers.host.kept["p@production"] == second.digest
        while second.digest not in tiers.device.digests():
            await asyncio.sleep(0)
    await leasing.close()


async def test_the_disk_tier_lies_in_the_home_and_zero_bytes_are_none(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base"))
    founded = pool_base(base, Settings.load(home=tmp_path))
    with_disk = loader(base, founded, Settings.load(home=tmp_path))
    assert [tally.tier for tally in with_disk.tallies] == ["device", "host", "disk", "store"]
    assert (tmp_path / "disk-tier" / "lock").exists()
    await with_disk.close()
    without = loader(base, founded, Settings.load(home=tmp_path, serving={"disk_tier_bytes": 0}))
    assert [tally.tier for tally in without.tallies] == ["device", "host", "store"]
    await without.close()
