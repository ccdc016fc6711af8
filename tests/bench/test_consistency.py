"""Publishes under load on the real broker, two workers, a real registrar: every answer is of a revision that was asked for."""

import uuid
from pathlib import Path

import pytest

from mint_stream.bench.consistency import BACK_EVERY, Load, measure
from mint_stream.bench.witness import Site
from mint_stream.bus.connection import Connection
from tests.provisioned import ensure_topics
from tests.registrar_ground import Ground

pytestmark = pytest.mark.kafka


async def measured(connection: Connection, room: Path, load: Load) -> dict:
    pool = f"witness-{uuid.uuid4().hex[:8]}"
    await ensure_topics(connection, pool)
    async with Ground.of_fleet(connection).registrar():
        return await measure(Site(connection, pool, (room / "store").as_uri(), room), load)


def check(found: dict, load: Load) -> None:
    assert found["findings"] == dict.fromkeys(("stale", "mixed", "backwards", "errors", "unanswered"), 0), found["first_findings"]
    back = sum((load.publishes // load.adapters + (n < load.publishes % load.adapters)) // BACK_EVERY for n in range(load.adapters))
    assert found["moves"] == load.publishes + back and found["requests"] == 3 * found["moves"] == sum(found["answers_by_worker"].values())
    assert set(found["answers_by_worker"]) == {"worker-1", "worker-2"}, "both had part in it"


async def test_a_hundred_publishes_under_load_leave_no_answer_that_is_wrong(connection: Connection, tmp_path: Path) -> None:
    load = Load(publishes=100, adapters=8)
    check(await measured(connection, tmp_path, load), load)


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_thousand_publishes_under_load_leave_no_answer_that_is_wrong(connection: Connection, tmp_path: Path) -> None:
    load = Load()
    check(await measured(connection, tmp_path, load), load)
