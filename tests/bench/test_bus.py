"""The bus benchmark: what counts as drained, and a small run of both sides on the real broker."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.bench import bus
from mint_stream.bench.bus import PROMPT, WINDOWS, Drained, Size, request_record, run
from mint_stream.bench.workload import WrongResult
from mint_stream.bus.connection import Connection
from mint_stream.messages.inference import InferenceRequest, InferenceResult
from mint_stream.settings import Settings
from tests.provisioned import PARTITIONS


@given(wanted=st.integers(min_value=WINDOWS, max_value=300), repeats=st.integers(min_value=0, max_value=3))
def test_a_backlog_has_ten_windows_however_often_a_result_comes_again(wanted: int, repeats: int) -> None:
    drained = Drained(wanted)
    for number in range(wanted):
        for _ in range(1 + repeats):
            drained.note(str(number).encode())
    assert len(drained.seen) == wanted and drained.doubled == repeats * wanted
    assert len(drained.marks) == (WINDOWS if wanted < 2 * WINDOWS and wanted == WINDOWS else WINDOWS + 1)
    assert all(rate > 0 or math.isinf(rate) for rate in drained.rates())


def test_a_request_of_the_benchmark_is_one_a_client_could_send() -> None:
    record = request_record("t")
    request = InferenceRequest.decode(record.value)
    assert request.prompt_tokens == PROMPT and record.key == request.request_id.encode()
    assert {name for name, _ in record.headers} >= {"ce_id", "ce_type", "traceparent"}
    assert request_record("t").key != record.key


def test_what_is_not_the_echo_is_refused() -> None:
    echo = InferenceResult(request_id="r", tenant="t", request_digest="d" * 64, status="ok", tokens=PROMPT, completed_at_ms=1)
    bus.check(echo)
    with pytest.raises(WrongResult, match="was answered with"):
        bus.check(echo.model_copy(update={"tokens": PROMPT[1:]}))


@pytest.fixture
def settings(connection: Connection) -> Settings:
    return Settings.load(kafka={"bootstrap_servers": connection.bootstrap_servers}, partitions=PARTITIONS)


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(180)
async def test_both_sides_answer_everything_once(settings: Settings) -> None:
    report = await run(settings, Size(requests=3, rounds=1, backlog=200))
    for side in ("ours", "raw"):
        assert report["round_trip_ms"][side]["p50"] > 0 and report["sustained_per_s"][side]["median"] > 0
        assert report["backlog"][side]["requests"] == 200 and report["backlog"][side]["worker_mib"]["most"] > 0
    trips = report["round_trip_ms"]
    assert report["latency_ratio"]["median"] == pytest.approx(trips["ours"]["p50"] / trips["raw"]["p50"])


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_side_that_answers_twice_gets_no_number(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what waits has a namesake before it, so its results are two."""
    fresh = bus.request_record

    def twice(topic: str) -> bus.Outgoing:
        record = fresh(topic)
        return replace(record, key=b"again" if record.key and record.key[0] % 2 else record.key)

    monkeypatch.setattr(bus, "request_record", twice)
    with pytest.raises(WrongResult, match="more than one"):
        await bus.drain(settings, bus.connection_from(settings), "raw", 100)
