"""Wherever a block is put, its adapter computes what the block says; nothing grows with the adapters that came and went."""

import gc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.adapter import AdapterBlock, AdapterLayer, AdapterWeights
from mint_stream.engine.adapter_rows import REMEMBERED_ARENAS, SPARE_ROWS, Placing, SideBySide, WhereTheyAre
from mint_stream.model.passes import NO_ADAPTERS, AdapterSet

MOST = 4
LAYOUTS = ({"q_proj": 2, "k_proj": 2, "v_proj": 1, "o_proj": 3}, {"q_proj": 2, "v_proj": 2})
PATHS = tuple(f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in LAYOUTS[0])


def block(layout: int, seed: int, width: int = 4) -> AdapterBlock:
    generator = torch.Generator().manual_seed(seed)
    layers = {
        f"model.layers.{at}.self_attn.{name}": AdapterLayer(
            torch.randn(rank, width, generator=generator), torch.randn(6, rank, generator=generator), 0.5
        )
        for at in range(2)
        for name, rank in LAYOUTS[layout].items()
    }
    return AdapterBlock.build(AdapterWeights(layers=layers, config={"seed": seed}))


def assert_same(adapters: AdapterSet, slot: int, wanted: AdapterBlock) -> None:
    for path in PATHS:
        site = adapters.site(path)
        got = None if site is None else site.at[slot]
        layer = wanted.layers.get(path)
        assert (got is None) == (layer is None)
        if got is not None and layer is not None:
            assert torch.equal(got.A, layer.A) and torch.equal(got.Bt, layer.Bt)


steps = st.lists(st.lists(st.integers(0, 9), max_size=MOST, unique=True), min_size=1, max_size=12)


@pytest.mark.parametrize("make", [lambda: SideBySide(MOST), WhereTheyAre], ids=["side by side", "where they are"])
@given(steps=steps)
def test_every_step_finds_every_block_in_a_slot_of_its_own(make: Callable[[], Placing], steps: list[list[int]]) -> None:
    placing, blocks = make(), {name: block(name % 2, name) for name in range(10)}
    for step in steps:
        wanted = [blocks[name] for name in step]
        adapters, slots = placing.place(wanted)
        assert len(set(slots.values())) == len(wanted)
        for one in wanted:
            assert_same(adapters, slots[id(one)], one)


@given(steps=steps)
def test_a_step_reads_few_rows_without_work(steps: list[list[int]]) -> None:
    placing, blocks = SideBySide(MOST), {name: block(0, name) for name in range(10)}
    for step in steps:
        _, slots = placing.place([blocks[name] for name in step])
        assert max(slots.values(), default=0) < len(step) + SPARE_ROWS


def test_a_block_that_stays_is_copied_once_and_a_new_block_never_passes_for_a_dead_one() -> None:
    placing, stays = SideBySide(MOST), block(0, 0)
    placing.place([stays, block(0, 1)])
    gc.collect()
    adapters, slots = placing.place([stays, block(0, 2)])
    first = adapters.site(PATHS[0])
    assert first is not None and slots[id(stays)] == 0
    first.stacks[0].A[0].fill_(7.0)  # a mark that another copy of the block would wipe out
    again, _ = placing.place([stays, block(0, 3)])
    site = again.site(PATHS[0])
    assert site is not None and bool((site.stacks[0].A[0] == 7.0).all())


def test_a_block_let_go_of_is_not_kept_alive() -> None:
    placing, gone = SideBySide(MOST), block(0, 0)
    placing.place([gone])
    held = next(iter(placing._arenas.values())).held[0]
    del gone
    gc.collect()
    assert held() is None


def test_arenas_of_layouts_that_are_gone_are_given_up() -> None:
    placing = SideBySide(MOST)
    for width in range(1, REMEMBERED_ARENAS + 5):
        one = block(0, 0, width * 4)
        adapters, slots = placing.place([one])
        assert_same(adapters, slots[id(one)], one)
    assert len(placing._arenas) == REMEMBERED_ARENAS


def test_neighbouring_As_are_read_as_one() -> None:
    adapters, _ = SideBySide(MOST).place([block(0, 0), block(0, 1)])
    weights = adapters.slices(tuple(f"model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")))
    assert weights is not None and [stack.A.shape for stack in weights.stacks] == [(2, 5, 4)]
    assert weights.stacks[0].A.is_contiguous()


def test_without_adapters_there_is_the_empty_set() -> None:
    assert SideBySide(MOST).place([]) == (NO_ADAPTERS, {})
