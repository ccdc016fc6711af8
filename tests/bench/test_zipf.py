"""Adapters are made once and are real; a stream over them passes every tier, and each answers for its share."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from mint_stream.adapter import AdapterWeights
from mint_stream.bench import farm as module
from mint_stream.bench import zipf
from mint_stream.bench.farm import Plan, farm
from mint_stream.bench.zipf import Stream, popular
from mint_stream.store import Store
from tests.factories import tiny_base

PLAN = Plan(20, "b" * 64, {"model.layers.0.self_attn.q_proj": (16, 16), "model.layers.1.self_attn.v_proj": (16, 8)})


def test_every_adapter_of_a_farm_is_whole_has_its_digest_and_numbers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    grown = farm(tmp_path / "farm", PLAN, processes=2)
    store = Store(grown.uri)
    found = [AdapterWeights.from_files(store.read_revision(str(grown.revision(number, "a").uri))) for number in range(PLAN.count)]
    assert [weights.digest for weights in found] == [grown.revision(number, "a").digest for number in range(PLAN.count)]
    assert len({weights.digest for weights in found}) == PLAN.count
    assert [weights.rank for weights in found[:9]] == [1, 2, 3, 4, 5, 6, 7, 8, 1]
    assert all(weights.layers[path].shape == shape for weights in found for path, shape in PLAN.linears.items())
    assert torch.isfinite(next(iter(found[0].layers.values())).A).all()


def test_a_farm_is_made_once_and_anew_for_another_plan_or_after_an_interruption(tmp_path: Path) -> None:
    first = farm(tmp_path / "farm", PLAN, processes=1)
    assert farm(tmp_path / "farm", PLAN) == first
    (tmp_path / "farm" / "plan.json").unlink()
    assert farm(tmp_path / "farm", PLAN, processes=1).uploads != first.uploads, "uploads have names of their own"
    smaller = farm(tmp_path / "farm", Plan(3, PLAN.base_digest, PLAN.linears), processes=1)
    assert len(smaller.uploads) == len(list((tmp_path / "farm").rglob("manifest.json"))) == 3


def test_the_first_name_is_asked_for_as_often_as_zipf_says() -> None:
    counts = [count for _, count in Counter(popular(1000, 50_000)).most_common()]
    whole = sum(1 / rank for rank in range(1, 1001))
    for rank in (1, 2, 10):
        assert counts[rank - 1] == pytest.approx(50_000 / rank / whole, rel=0.1)


@pytest.mark.parametrize("names", [0, 120])
def test_a_stream_passes_every_tier_and_is_answered_without_error(tmp_path: Path, names: int) -> None:
    stream = Stream(
        adapters=40, names=names, requests=30, warm_up=200, concurrency=4, device_bytes=2**14, host_bytes=2**15, disk_bytes=2**16
    )
    found = zipf.run(tiny_base(tmp_path / "base"), tmp_path / "room", stream)
    assert found["errors"] == found["warm_up"]["errors"] == 0
    assert set(found["tiers"]) == {"device", "host", "disk", "store"}
    for tier, of in found["warm_up"]["tiers"].items():
        assert of["share_of_requests"] > 0, tier
        assert of["used_bytes"] <= of["budget_bytes"]
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
