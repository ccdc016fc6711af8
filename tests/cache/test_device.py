"""The device tier under any order of places and releases: nobody's block is taken away, the budget holds, and who waits is served."""

import asyncio

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.device import DeviceTier, Lease
from mint_stream.cache.slots import ArenaSlots
from mint_stream.errors import AdapterNotLoaded
from tests.factories import LINEARS, random_weights

BLOCKS = [AdapterBlock.build(random_weights(LINEARS, rank=rank, seed=rank)) for rank in (1, 2, 3, 4, 5)]
NUMBERS = {block.digest: block.flat for block in BLOCKS}
BUDGET = 512 + BLOCKS[-1].nbytes + BLOCKS[0].nbytes
LARGEST = BLOCKS[-1]

steps = st.lists(st.tuples(st.sampled_from(["place", "release", "again"]), st.integers(0, len(BLOCKS) - 1)), max_size=25)


def tier_of(budget: int, arena: bool) -> DeviceTier:
    """On the CPU; with the arena that other devices have, if so wished."""
    return DeviceTier(budget, slots=ArenaSlots(budget, torch.device("cpu")) if arena else None)


class Holder:
    """Places blocks without waiting, releases the oldest leases, and checks the tier whenever the loop has come to rest."""

    def __init__(self, arena: bool) -> None:
        self.tier = tier_of(BUDGET, arena)
        self.pending: list[asyncio.Task[Lease]] = []
        self.leases: list[Lease] = []

    async def step(self, what: str, number: int) -> None:
        if what == "place":
            self.pending.append(asyncio.create_task(self.tier.place(BLOCKS[number])))
        elif what == "release" and self.leases:
            self.leases.pop(number % len(self.leases)).release()
        elif what == "again" and (held := self.tier.lease(BLOCKS[number].digest)) is not None:
            self.leases.append(held)
        await asyncio.sleep(0)
        self.collect()

    def collect(self) -> None:
        done = [task for task in self.pending if task.done()]
        self.pending = [task for task in self.pending if not task.done()]
        self.leases += [task.result() for task in done]
        assert self.tier.used_bytes <= BUDGET
        for lease in self.leases:
            assert lease.block.digest in self.tier
            assert lease.block.flat.equal(NUMBERS[lease.block.digest]), "somebody else's numbers lie over these"

    async def everyone_is_served(self) -> None:
        """Whoever waits gets a place once enough is given back."""
        while self.pending:
            for lease in self.leases:
                lease.release()
            self.leases.clear()
            await asyncio.wait(self.pending, return_when=asyncio.FIRST_COMPLETED)
            self.collect()


@settings(max_examples=60, deadline=None)
@given(steps, st.booleans())
def test_what_is_leased_stays_the_budget_holds_and_who_waits_is_served(history: list[tuple[str, int]], arena: bool):
    async def live() -> None:
        holder = Holder(arena)
        for what, number in history:
            await holder.step(what, number)
        await holder.everyone_is_served()

    asyncio.run(live())


async def test_a_placed_block_holds_the_numbers_it_was_placed_with():
    tier = DeviceTier(BUDGET)
    lease = await tier.place(LARGEST)
    assert lease.block.digest == LARGEST.digest
    for path, layer in LARGEST.layers.items():
        assert lease.block.layers[path].A.equal(layer.A) and lease.block.layers[path].Bt.equal(layer.Bt)


async def test_placing_what_is_here_is_holding_it():
    tier = DeviceTier(BUDGET)
    first, second = await tier.place(LARGEST), await tier.place(LARGEST)
    assert first.block is second.block and tier.used_bytes == LARGEST.nbytes


async def test_two_who_place_the_same_at_once_share_one_copy():
    tier = DeviceTier(BUDGET)
    leases = await asyncio.gather(*(tier.place(LARGEST) for _ in range(5)))
    assert len({id(lease.block) for lease in leases}) == 1 and tier.used_bytes == LARGEST.nbytes


async def test_the_least_recently_used_goes_first_and_the_newest_is_listed_first():
    tier = DeviceTier(sum(block.nbytes for block in BLOCKS[:3]))
    for block in BLOCKS[:3]:
        (await tier.place(block)).release()
    assert tier.digests() == [block.digest for block in reversed(BLOCKS[:3])]
    held = tier.lease(BLOCKS[0].digest)
    assert held is not None
    held.release()
    (await tier.place(BLOCKS[3])).release()
    assert BLOCKS[1].digest not in tier and BLOCKS[3].digest in tier


async def test_what_alone_exceeds_the_budget_is_refused_and_evicts_nothing():
    tier = DeviceTier(BLOCKS[0].nbytes)
    (await tier.place(BLOCKS[0])).release()
    with pytest.raises(AdapterNotLoaded, match=f"{LARGEST.nbytes} bytes .* {BLOCKS[0].nbytes} bytes"):
        await tier.place(LARGEST)
    assert tier.digests() == [BLOCKS[0].digest]


async def test_a_waiter_that_gives_up_leaves_the_place_to_the_next():
    tier = DeviceTier(LARGEST.nbytes)
    held = await tier.place(LARGEST)
    waiting = [asyncio.create_task(tier.place(block)) for block in BLOCKS[:2]]
    await asyncio.sleep(0)
    waiting[0].cancel()
    held.release()
    lease = await waiting[1]
    assert lease.block.digest == BLOCKS[1].digest
    assert tier.has_free_room(LARGEST.nbytes - BLOCKS[1].nbytes) and not tier.has_free_room(LARGEST.nbytes)


async def test_what_is_not_here_is_not_leased():
    tier = DeviceTier(BUDGET)
    assert tier.lease(LARGEST.digest) is None
    with pytest.raises(KeyError):
        tier.hold(LARGEST.digest)


async def test_in_an_arena_a_block_that_fits_by_bytes_but_in_no_hole_takes_the_place_of_more():
    sizes = [-(-block.nbytes // 256) * 256 for block in BLOCKS]
    tier = tier_of(sizes[0] + sizes[1] + sizes[0] + sizes[2], arena=True)
    first, second, third = [await tier.place(block) for block in BLOCKS[:3]]
    first.release()
    third.release()
    assert not tier.has_free_room(LARGEST.nbytes)
    lease = await tier.place(BLOCKS[3])  # by bytes it would be enough that one of the two goes
    assert second.block.digest in tier and lease.block.flat.equal(BLOCKS[3].flat)
    assert lease.block.flat.untyped_storage().data_ptr() == second.block.flat.untyped_storage().data_ptr()


async def test_a_full_arena_parks_who_comes_until_something_is_given_back():
    tier = tier_of(LARGEST.nbytes + 256, arena=True)
    held = await tier.place(LARGEST)
    waiting = asyncio.create_task(tier.place(BLOCKS[0]))
    await asyncio.sleep(0)
    assert not waiting.done()
    held.release()
    assert (await waiting).block.flat.equal(BLOCKS[0].flat)
    assert tier.tally.evictions == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
async def test_on_a_gpu_blocks_share_one_arena_and_hold_their_numbers():
    tier = DeviceTier(BUDGET, "cuda")
    leases = [await tier.place(block) for block in (BLOCKS[0], BLOCKS[3])]
    assert len({lease.block.flat.untyped_storage().data_ptr() for lease in leases}) == 1
    for lease in leases:
        assert lease.block.flat.cpu().equal(NUMBERS[lease.block.digest])
