"""The benchmark of cold loads counts loads and failures, reports ratios, and refuses numbers that are not what was published."""

from pathlib import Path

import pytest

from mint_stream.adapter import AdapterBlock
from mint_stream.bench import coldload
from mint_stream.bench.coldload import ColdLoad
from mint_stream.bench.serving_scene import StepClock
from mint_stream.bench.wrong import WrongResult
from mint_stream.cache import AdapterSource
from mint_stream.errors import CorruptObject
from mint_stream.messages.adapters import Revision
from mint_stream.model.base import load_base
from tests.factories import tiny_base

SMALL = ColdLoad(adapters=5, requests=6, rank=2, latency_ms=2.0, running=2, steps=6, tensors=40, repeats=1)


def test_it_reports_one_load_no_errors_and_ratios_with_their_spread(tmp_path: Path) -> None:
    found = coldload.run(tiny_base(tmp_path / "base"), SMALL)
    assert (found["loads_for_one_adapter"], found["errors"]) == (1, 0)
    for ratio in ("overlap_ratio", "step_time_ratio_while_loading"):
        assert 0 < found["spread"][ratio]["min"] <= found[ratio] == found["spread"][ratio]["median"] <= found["spread"][ratio]["max"]
    assert found["machine"]["cores"] >= 1 and found["workload"]["adapter_bytes"] > 0


async def test_each_part_begins_with_all_tiers_of_a_worker_and_nothing_in_any(tmp_path: Path) -> None:
    scene = coldload._published(load_base(tiny_base(tmp_path / "base")), SMALL, tmp_path)
    for _ in range(2):
        async with coldload._nothing_at_hand(scene) as loader:
            (await loader.lease(scene.revisions[0])).release()
        device, host, disk, store = loader.tallies
        assert (disk.tier, disk.hits, disk.misses, store.hits) == ("disk", 0, 1, 1)
        assert device.used_bytes and host.used_bytes and disk.used_bytes
    assert not disk_tiers(tmp_path)


def disk_tiers(room: Path) -> list[Path]:
    return list(room.glob("disk-tier-*"))


def test_numbers_other_than_published_get_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = AdapterSource.block

    def wrong(source: AdapterSource, revision: Revision) -> AdapterBlock:
        block = right(source, revision)
        block.flat[0] += 1
        return block

    monkeypatch.setattr(AdapterSource, "block", wrong)
    with pytest.raises(WrongResult, match="other numbers than it was published with"):
        coldload.run(tiny_base(tmp_path / "base"), SMALL)


def test_loads_that_fail_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = AdapterSource.block

    def refuse(source: AdapterSource, revision: Revision) -> AdapterBlock:
        if revision.adapter_id == "many":
            return right(source, revision)
        raise CorruptObject(f"{revision.adapter_id}@1: no")

    monkeypatch.setattr(AdapterSource, "block", refuse)
    found = coldload.run(tiny_base(tmp_path / "base"), SMALL)
    assert found["errors"] >= 5 + 5 + 6 + 5 and found["loads_for_one_adapter"] == 0


def test_a_step_that_several_rows_tell_of_is_one_and_steps_without_text_share_the_time_between() -> None:
    steps = iter((1, 1, 2, 2, 5))
    clock = StepClock(lambda: next(steps))
    for _ in range(5):
        clock.tick("x")
    assert len(clock.gaps_s) == 2
    assert all(gap >= 0 for gap in clock.gaps_s)
