"""The batcher's benchmark plans full batches, however many adapters wait."""

import pytest

from mint_stream.bench import batcher


def test_it_reports_microseconds_a_step_by_known_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "KNOWN_ADAPTERS", (40, 80))
    monkeypatch.setattr(batcher, "STEPS", 30)
    report = batcher.run(repeats=2)
    assert set(report["step_us"]) == {"40", "80"} and set(report["ratios"]) == {"80_to_40"}
    assert all(values["min"] <= values["median"] <= values["max"] for values in report["step_us"].values())
    assert report["machine"]["cores"] >= 1
