"""An adapter of very many tensors is measured against its own bytes, and its numbers are checked."""

from pathlib import Path

import pytest

from mint_stream.adapter import AdapterBlock
from mint_stream.bench.many_tensors import many_tensors
from mint_stream.bench.workload import WrongResult
from mint_stream.cache import DiskTier
from tests.factories import random_weights


def test_it_reports_each_way_with_its_spread() -> None:
    found = many_tensors(tensors=60, repeats=2)
    assert found["tensors"] == 60 and found["bytes"] > 60 * 4096
    assert set(found["ms"]) == {"read", "read_and_hash", "load_from_store", "load_from_disk_tier"}
    assert all(0 < value["min"] <= value["median"] <= value["max"] for value in found["ms"].values())


def test_a_disk_tier_that_gives_other_numbers_gets_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(DiskTier, "read", lambda _tier, _digest: AdapterBlock.build(random_weights()))
    with pytest.raises(WrongResult, match="other numbers"):
        many_tensors(tensors=10, repeats=1)
