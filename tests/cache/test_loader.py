"""The loader: one load however many wait, typed failures, leases that hold, nothing that blocks the loop."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from mint_stream.adapter import AdapterBlock, AdapterWeights
from mint_stream.cache import AdapterSource, Backoff, DeviceTier, DiskTier, HostTier, Loader
from mint_stream.cache.source import OUT_OF_MEMORY
from mint_stream.errors import (
    AdapterNotLoaded,
    AdapterUnloadable,
    BaseMismatch,
    CorruptObject,
    DeviceLost,
    InvalidAdapter,
    RevisionRetired,
    StoreUnavailable,
)
from mint_stream.messages.adapters import Manifest, Revision
from mint_stream.store import Store
from tests.factories import LINEARS, random_weights

BLOCK_BYTES = AdapterBlock.build(random_weights()).nbytes


def publish(store: Store, number: int = 1, weights: AdapterWeights | None = None) -> Revision:
    weights = weights or random_weights(seed=number)
    manifest = store.put_revision(
        weights.to_peft(), digest=weights.digest, base_digest="b" * 64, targets=weights.targets(), parameters=weights.parameters
    )
    return Revision(
        adapter_id="a",
        number=number,
        state="announced",
        digest=manifest.digest,
        pool="p",
        uri=manifest.uri,
        base_digest="b" * 64,
        announced_at_ms=0,
    )


class GatedSource(AdapterSource):
    """Opens when told, fails as often as told, and counts."""

    def __init__(self, store: Store, failures: int = 0) -> None:
        super().__init__(store, LINEARS, max_rank=8)
        self.gate = threading.Event()
        self.gate.set()
        self.calls = 0
        self.inside = 0
        self.most_inside = 0
        self.failures = failures
        self.entered = threading.Semaphore(0)
        self._lock = threading.Lock()

    def block(self, revision: Revision) -> AdapterBlock:
        with self._lock:
            self.calls += 1
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            fail = self.calls <= self.failures
        self.entered.release()
        try:
            assert self.gate.wait(20)
            if fail:
                raise StoreUnavailable("the store sleeps")
            return super().block(revision)
        finally:
            with self._lock:
                self.inside -= 1


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return Store(f"memory://loader/{request.node.name.replace('[', '-').replace(']', '')}")


@pytest.fixture
def source(store: Store) -> GatedSource:
    return GatedSource(store)


@pytest.fixture
async def loader(source: GatedSource) -> AsyncIterator[Loader]:
    made = make_loader(source)
    yield made
    source.gate.set()
    await made.close()


def make_loader(source: AdapterSource, device_blocks: int = 10, host_blocks: int = 10, parallelism: int = 4) -> Loader:
    return Loader(source, HostTier(host_blocks * BLOCK_BYTES), DeviceTier(device_blocks * BLOCK_BYTES), parallelism, Backoff(3, 0.0))


async def entered(source: GatedSource, times: int = 1) -> None:
    for _ in range(times):
        assert await asyncio.to_thread(source.entered.acquire, timeout=20)


async def test_a_lease_gives_the_adapters_numbers(loader: Loader, store: Store) -> None:
    weights = random_weights(seed=3)
    lease = await loader.lease(publish(store, weights=weights))
    path = "model.layers.1.mlp.down_proj"
    torch.testing.assert_close(lease.block.layers[path].Bt, weights.layers[path].B.t() * weights.layers[path].scaling)
    assert lease.block.digest == weights.digest


async def test_however_many_wait_it_is_loaded_once(loader: Loader, store: Store, source: GatedSource) -> None:
    revision = publish(store)
    source.gate.clear()
    waiters = [asyncio.create_task(loader.lease(revision)) for _ in range(50)]
    fetching = asyncio.create_task(loader.prefetch(revision))
    await entered(source)
    source.gate.set()
    leases = await asyncio.gather(*waiters)
    await fetching
    assert source.calls == loader.loads_total == 1
    assert len({id(lease.block) for lease in leases}) == 1
    (await loader.lease(revision)).release()
    assert loader.hits == 1


async def test_loading_is_bounded_and_leaves_the_loop_free(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, parallelism=2)
    source.gate.clear()
    waiters = [asyncio.create_task(loader.lease(publish(store, number))) for number in range(1, 7)]
    await entered(source, 2)
    assert source.inside == 2
    source.gate.set()
    await asyncio.gather(*waiters)
    assert source.most_inside == 2
    assert source.calls == 6


async def test_nothing_leased_is_evicted_and_a_waiter_gets_the_room_that_is_given_back(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, device_blocks=2)
    first, second = [await loader.lease(publish(store, number)) for number in (1, 2)]
    third = asyncio.create_task(loader.lease(publish(store, 3)))
    await entered(source, 3)
    await asyncio.wait({third}, timeout=0.05)
    assert not third.done()
    assert {first.block.digest, second.block.digest} == set(loader.device.digests())
    first.release()
    assert (await third).block.digest in loader.device
    assert first.block.digest not in loader.device
    assert second.block.digest in loader.device
    assert loader.device.used_bytes <= 2 * BLOCK_BYTES


async def test_releasing_twice_gives_back_once(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, device_blocks=1)
    revision = publish(store)
    first, second = await loader.lease(revision), await loader.lease(revision)
    first.release()
    first.release()
    other = asyncio.create_task(loader.lease(publish(store, 2)))
    await asyncio.wait({other}, timeout=0.05)
    assert not other.done()
    second.release()
    (await other).release()


async def test_what_left_the_device_comes_back_from_the_host_tier(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, device_blocks=1)
    one, two = publish(store, 1), publish(store, 2)
    for revision in (one, two, one, two):
        (await loader.lease(revision)).release()
    assert source.calls == 2


async def test_what_production_was_stays_in_the_host_tier(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, device_blocks=1, host_blocks=2)
    previous = publish(store, 1)
    (await loader.lease(previous)).release()
    loader.keep("a", previous.digest)
    for number in range(2, 6):
        (await loader.lease(publish(store, number))).release()
    assert previous.digest in loader.host
    loader.keep("a", None)
    for number in range(6, 8):
        (await loader.lease(publish(store, number))).release()
    assert previous.digest not in loader.host


async def test_a_passing_failure_is_tried_again(store: Store) -> None:
    source = GatedSource(store, failures=2)
    (await make_loader(source).lease(publish(store))).release()
    assert source.calls == 3


async def test_a_failure_that_lasts_is_told_to_its_waiters_and_forgotten(store: Store) -> None:
    source = GatedSource(store, failures=3)
    loader = make_loader(source)
    revision = publish(store)
    outcomes = await asyncio.gather(*(loader.lease(revision) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert source.calls == 3
    (await loader.lease(revision)).release()


async def test_one_revisions_failure_is_not_its_neighbours(loader: Loader, store: Store) -> None:
    good, bad = publish(store, 1), publish(store, 2)
    path = f"{bad.uri}/adapter_model.safetensors".removeprefix(store.uri + "/")
    content = store.read_object(path)
    store.delete_object(path)
    store.put_object(path, content[:-1] + bytes([content[-1] ^ 1]))
    held, refused = await asyncio.gather(loader.lease(good), loader.lease(bad), return_exceptions=True)
    assert not isinstance(held, BaseException)
    assert isinstance(refused, CorruptObject)
    assert "a@2" in str(refused)


async def test_what_is_broken_for_good_is_read_once(loader: Loader, store: Store, source: GatedSource) -> None:
    weights = random_weights()
    weights.layers["model.layers.0.self_attn.q_proj"].A[0, 0] = float("nan")
    revision = publish(store, weights=weights)
    for _ in range(3):
        with pytest.raises(InvalidAdapter, match=r"a@1.*not finite"):
            await loader.lease(revision)
    with pytest.raises(InvalidAdapter, match="a@1"):
        await loader.prefetch(revision)
    assert source.calls == 1


async def test_what_does_not_fit_the_base_is_refused_by_name(loader: Loader, store: Store) -> None:
    with pytest.raises(BaseMismatch, match=r"a@1.*model\.layers\.7"):
        await loader.lease(publish(store, 1, random_weights({"model.layers.7.mlp.down_proj": (40, 16)})))
    with pytest.raises(BaseMismatch, match=r"a@2.*41 -> 16"):
        await loader.lease(publish(store, 2, random_weights({"model.layers.0.mlp.down_proj": (41, 16)})))
    with pytest.raises(InvalidAdapter, match=r"a@3.*rank 9"):
        await loader.lease(publish(store, 3, random_weights(rank=9)))


async def test_other_bytes_than_announced_are_refused(loader: Loader, store: Store) -> None:
    revision = publish(store).model_copy(update={"digest": "c" * 64})
    with pytest.raises(CorruptObject, match=r"a@1.*announced as cccc"):
        await loader.lease(revision)


async def test_a_retired_revision_has_no_files(loader: Loader, store: Store) -> None:
    with pytest.raises(RevisionRetired, match="a@1"):
        await loader.lease(publish(store).model_copy(update={"uri": None, "state": "retired"}))


async def test_an_adapter_larger_than_the_device_tier_is_refused(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, device_blocks=1)
    with pytest.raises(AdapterNotLoaded, match=r"a@1.*do not fit the device tier"):
        await loader.lease(publish(store, weights=random_weights(rank=8)))
    await loader.lease(publish(store, 2))


class Poor(Store):
    """A store whose reader runs out of something of this machine as often as there are `errors`."""

    def __init__(self, uri: str, *errors: Exception) -> None:
        super().__init__(uri)
        self._errors = list(errors)

    def read_revision(self, revision: str | Manifest) -> dict[str, bytes]:
        if self._errors:
            raise self._errors.pop()
        return super().read_revision(revision)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread"), OSError(24, "Too many open files")], ids=repr)
async def test_what_this_machine_lacks_is_no_fault_of_the_adapter(store: Store, error: Exception) -> None:
    revision = publish(store)
    lasting = make_loader(AdapterSource(Poor(store.uri, error, error, error), LINEARS, max_rank=8))
    with pytest.raises(AdapterNotLoaded, match=f"a@1 could not be loaded here: {type(error).__name__}"):
        await lasting.lease(revision)
    (await lasting.lease(revision)).release()
    passing = make_loader(AdapterSource(Poor(store.uri, error), LINEARS, max_rank=8))
    (await passing.lease(revision)).release()


def accelerator_error(code: int) -> torch.AcceleratorError:
    """As torch raises it, with CUDA's number."""
    error = torch.AcceleratorError("CUDA error")
    error.error_code = code
    return error


async def test_a_device_that_is_gone_is_told_from_one_that_is_full_and_ends_its_worker(store: Store) -> None:
    revision, full, gone = publish(store), accelerator_error(OUT_OF_MEMORY), accelerator_error(700)
    passing = make_loader(AdapterSource(Poor(store.uri, full), LINEARS, max_rank=8))
    (await passing.lease(revision)).release()
    with pytest.raises(DeviceLost, match="a@1 could not be laid out for the device"):
        await make_loader(AdapterSource(Poor(store.uri, gone), LINEARS, max_rank=8)).lease(revision)


async def test_files_that_break_the_reader_are_the_adapters_fault(store: Store) -> None:
    """Whatever reading them raises, nobody else will read them either."""

    class Odd(Store):
        def read_revision(self, revision: str | Manifest) -> dict[str, bytes]:
            return super().read_revision(revision) | {"adapter_model.safetensors": None}  # type: ignore[dict-item]

    with pytest.raises(AdapterUnloadable, match="a@1: its files could not be read: TypeError"):
        await make_loader(AdapterSource(Odd(store.uri), LINEARS, max_rank=8)).lease(publish(store))


async def test_a_waiter_that_gives_up_disturbs_no_other_and_leaves_no_lease(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, device_blocks=1)
    revision = publish(store)
    source.gate.clear()
    patient, hasty = asyncio.create_task(loader.lease(revision)), asyncio.create_task(loader.lease(revision))
    await entered(source)
    hasty.cancel()
    await asyncio.wait({hasty})
    source.gate.set()
    (await patient).release()
    (await loader.lease(publish(store, 2))).release()


async def test_a_place_is_held_for_those_who_waited_for_it(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, device_blocks=1)
    revisions = [publish(store, number) for number in (1, 2)]

    async def use(revision: Revision) -> None:
        (await loader.lease(revision)).release()

    for _ in range(5):
        await asyncio.gather(*(use(revision) for revision in revisions * 5))


async def test_when_all_give_up_the_load_ends_and_holds_nothing(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, device_blocks=1)
    source.gate.clear()
    waiter = asyncio.create_task(loader.lease(publish(store)))
    await entered(source)
    waiter.cancel()
    await asyncio.wait({waiter})
    source.gate.set()
    (await loader.lease(publish(store, 2))).release()
    assert source.calls == 2


async def test_prefetching_evicts_nothing_from_the_device(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, device_blocks=1)
    one, two = publish(store, 1), publish(store, 2)
    await loader.prefetch(one)
    assert one.digest in loader.device
    await loader.prefetch(two)
    assert one.digest in loader.device
    assert two.digest in loader.host
    await loader.prefetch(two)
    assert source.calls == 2


async def test_what_is_to_be_in_the_host_tier_is_fetched_though_it_be_on_the_device(store: Store, source: GatedSource) -> None:
    """It is gone with the device's copy otherwise, and that one may go at any time."""
    loader = make_loader(source, host_blocks=1, device_blocks=2)
    one, two = publish(store, 1), publish(store, 2)
    for revision in (one, two):
        (await loader.lease(revision)).release()
    assert one.digest in loader.device and one.digest not in loader.host
    await loader.prefetch(one)
    assert one.digest in loader.host
    await loader.close()


async def test_the_same_content_uploaded_twice_takes_one_place(loader: Loader, store: Store) -> None:
    weights = random_weights()
    revisions = [publish(store, number, weights) for number in (1, 2)]
    leases = await asyncio.gather(*(loader.lease(revision) for revision in revisions))
    assert leases[0].block is leases[1].block
    assert loader.device.used_bytes == loader.host.used_bytes == BLOCK_BYTES


def test_each_wait_is_twice_the_one_before() -> None:
    assert [Backoff(4, 0.1).delay_s(failed) for failed in (1, 2, 3)] == [0.1, 0.2, 0.4]


def test_luck_shortens_a_wait_by_half_at_most_and_no_wait_is_longer_than_the_longest() -> None:
    backoff = Backoff(10, 0.1, longest_s=1.0)
    assert [backoff.delay_s(failed, 0.0) for failed in (1, 2, 9)] == [0.05, 0.1, 0.5]
    assert backoff.delay_s(9) == 1.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskTier]:
    tier = DiskTier(tmp_path / "disk", 10**6)
    yield tier
    tier.close()


def on_disk(store: Store, disk: DiskTier) -> AdapterSource:
    return AdapterSource(store, LINEARS, max_rank=8, disk=disk)


async def test_what_was_here_before_comes_from_disk_and_the_store_is_not_asked(store: Store, disk: DiskTier) -> None:
    revision = publish(store)
    first = make_loader(on_disk(store, disk))
    numbers = (await first.lease(revision)).block.flat
    await first.close()
    source = on_disk(Store("memory://nothing-here"), DiskTier(disk.path, 10**6))
    again = make_loader(source)
    assert torch.equal((await again.lease(revision)).block.flat, numbers)
    assert [(tally.tier, tally.hits, tally.misses) for tally in again.tallies] == [
        ("device", 0, 1),
        ("host", 0, 1),
        ("disk", 1, 0),
        ("store", 0, 0),
    ]
    await again.close()


async def test_what_is_on_disk_for_another_base_is_refused_here_too(store: Store, disk: DiskTier) -> None:
    revision = publish(store)
    disk.write(AdapterBlock.build(random_weights(seed=1)))
    other = AdapterSource(store, {"model.layers.0.self_attn.q_proj": (16, 16)}, max_rank=8, disk=disk)
    with pytest.raises(BaseMismatch, match=r"a@1.*the base has no such layer"):
        await make_loader(other).lease(revision)
    low = AdapterSource(store, LINEARS, max_rank=3, disk=disk)
    with pytest.raises(InvalidAdapter, match=r"a@1.*rank 4"):
        await make_loader(low).lease(revision)


async def test_a_harmed_file_on_disk_costs_a_read_of_the_store_and_no_more(store: Store, disk: DiskTier) -> None:
    revision = publish(store)
    disk.write(AdapterBlock.build(random_weights(seed=1)))
    [file] = disk.path.glob("*/*-*")
    file.write_bytes(file.read_bytes()[:-5])
    source = on_disk(store, disk)
    loader = make_loader(source)
    (await loader.lease(revision)).release()
    await loader.close()
    assert (source.tally.hits, disk.tally.hits) == (1, 0)
    with contextlib.closing(DiskTier(disk.path, 10**6)) as again:
        assert again.read(revision.digest) is not None, "it is there again"


async def test_who_gives_up_during_the_back_off_ends_the_load(store: Store) -> None:
    source = GatedSource(store, failures=100)
    loader = Loader(source, HostTier(10**6), DeviceTier(10**6), 4, Backoff(50, 3600.0, longest_s=3600.0))
    waiter = asyncio.create_task(loader.lease(publish(store)))
    await entered(source)
    waiter.cancel()
    await asyncio.wait({waiter})
    assert len(loader._loads) == len(loader._reads) == 0
    await loader.close()
    assert source.calls == 1


async def test_what_is_not_the_stores_or_this_machines_fault_is_not_tried_again(store: Store) -> None:
    class Wrong(GatedSource):
        def block(self, revision: Revision) -> AdapterBlock:
            super().block(revision)
            raise CorruptObject("a@1: other bytes")

    source = Wrong(store)
    with pytest.raises(CorruptObject):
        await make_loader(source).lease(publish(store))
    assert source.calls == 1


async def test_a_reader_whose_waiters_are_gone_keeps_its_place_until_its_thread_ends(store: Store, source: GatedSource) -> None:
    loader = make_loader(source, parallelism=1)
    source.gate.clear()
    hasty = asyncio.create_task(loader.lease(publish(store, 1)))
    await entered(source)
    hasty.cancel()
    await asyncio.wait({hasty})
    patient = asyncio.create_task(loader.lease(publish(store, 2)))
    await asyncio.sleep(0.05)
    assert source.inside == 1
    source.gate.set()
    (await patient).release()
    assert source.most_inside == 1
    assert len(loader.host.kept) == 0 and publish(store, 1).digest in loader.host, "what was read for nobody is at hand"


async def test_what_waits_for_room_on_the_device_is_bounded_by_the_host_tier(store: Store, source: GatedSource) -> None:
    """Twenty adapters asked for at once do not all lie in memory before the first of them is done with."""
    loader = make_loader(source, device_blocks=2, host_blocks=3, parallelism=2)
    waiting = {asyncio.create_task(loader.lease(publish(store, number))) for number in range(1, 21)}
    while loader._threads or source.calls < 5:
        await asyncio.sleep(0.001)
    assert source.calls <= 2 + 3 + 2, "two on the device, three that wait for room there, two that were being read by then"
    while waiting:
        finished, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            task.result().release()
    assert source.calls == 20


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
async def test_readers_take_the_processor_time_that_others_leave(store: Store) -> None:
    class Telling(GatedSource):
        def block(self, revision: Revision) -> AdapterBlock:
            self.priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return super().block(revision)

    source, before = Telling(store), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    (await make_loader(source).lease(publish(store))).release()
    assert source.priority == 19
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before, "nobody else does"
