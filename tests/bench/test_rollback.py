"""The roll-back benchmark watches a stream over the real system, and refuses answers from anything but the two revisions."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from mint_stream.bench.rollback import Size, Stream, run
from mint_stream.bench.wrong import WrongResult
from mint_stream.bus.connection import Connection
from mint_stream.messages.inference import InferenceResult, ServedBy
from tests.fleets import fleet_settings

DIGESTS = {1: "a" * 64, 2: "c" * 64}


class Fleet:
    """A client that answers at once, by the revision that is `number` now."""

    def __init__(self, digests: Mapping[int, str] = DIGESTS) -> None:
        self.number = 1
        self._digests = digests

    async def generate(self, prompt: Any, adapter: str, sampling: Any) -> InferenceResult:
        digest = self._digests.get(self.number)
        served = ServedBy(adapter_id=adapter, number=self.number, revision_digest=digest, base_digest="b" * 64, worker_id="w")
        return InferenceResult(request_id="r", tenant="t", request_digest="d" * 64, status="ok", served_by=served, completed_at_ms=1)


async def test_a_stream_sees_when_another_revision_answers() -> None:
    fleet = Fleet()
    async with Stream(fleet, Size(every_ms=1), DIGESTS).going() as stream:
        assert stream.number == 1
        fleet.number = 2
        await stream.until(lambda: stream.number == 2)
        await stream.settled()
    assert len(stream.answered_ms) >= 2


@pytest.mark.parametrize("digests", [{1: "f" * 64}, {}], ids=["other bytes", "no digest"])
async def test_an_answer_by_other_bytes_than_were_announced_is_refused(digests: Mapping[int, str]) -> None:
    with pytest.raises(WrongResult, match="was answered by"):
        async with Stream(Fleet(digests), Size(every_ms=1), DIGESTS).going():
            await asyncio.Event().wait()


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(180)
async def test_every_roll_back_is_timed_to_its_event_and_to_its_first_result(connection: Connection, tmp_path: Path) -> None:
    settings = await fleet_settings(connection, tmp_path)
    report = await run(settings, Size(rollbacks=4, every_ms=10, rank=2, prompt_tokens=6, adapter=f"a{uuid4().hex[:8]}"))
    assert report["n"] == 4 and report["requests"] >= 4
    for figure in ("effect_ms", "event_ms", "request_ms"):
        assert 0 < report[figure]["min"] <= report[figure]["p50"] <= report[figure]["p99"] <= report[figure]["max"]
