"""Publishes under load on the real broker, two workers, a real registrar: every answer is of a revision that was asked for."""

import uuid
from pathlib import Path

import pytest
import torch

from mint_stream.bench.consistency import BACK_EVERY, Load, measure, run
from mint_stream.bench.witness import Hashes, Site, Witnesses
from mint_stream.bench.witness_model import Models
from mint_stream.bus.connection import Connection
from mint_stream.model.base import load_base
from tests.factories import tiny_base
from tests.fleets import fleet_settings
from tests.provisioned import ensure_topics
from tests.registrar_ground import Ground

pytestmark = pytest.mark.kafka


async def measured(connection: Connection, room: Path, load: Load, witnesses: Witnesses) -> dict:
    pool = f"witness-{uuid.uuid4().hex[:8]}"
    await ensure_topics(connection, pool)
    async with Ground.of_fleet(connection).registrar():
        return await measure(Site(connection, pool, (room / "store").as_uri(), room, witnesses), load)


def check(found: dict, load: Load) -> None:
    assert found["findings"] == dict.fromkeys(("stale", "mixed", "backwards", "errors", "unanswered"), 0), found["first_findings"]
    back = sum((load.publishes // load.adapters + (n < load.publishes % load.adapters)) // BACK_EVERY for n in range(load.adapters))
    assert found["moves"] == load.publishes + back and found["requests"] == 3 * found["moves"] == sum(found["answers_by_worker"].values())
    assert set(found["answers_by_worker"]) == {"worker-1", "worker-2"}, "both had part in it"
    assert found["distinct_witnesses"] == load.publishes, "an answer by another revision would show"


async def test_a_hundred_publishes_under_load_leave_no_answer_that_is_wrong(connection: Connection, tmp_path: Path) -> None:
    load = Load(publishes=100, adapters=8)
    check(await measured(connection, tmp_path, load, Hashes()), load)


async def test_with_a_model_no_answer_is_of_two_revisions_though_all_prompts_are_alike(connection: Connection, tmp_path: Path) -> None:
    load = Load(publishes=32, adapters=4)
    base = load_base(tiny_base(tmp_path / "base"), dtype=torch.float32)
    async with Models(base) as models:
        found = await measured(connection, tmp_path, load, models)
    check(found, load)
    assert found["reused_prompt_tokens"] > 0, "prefixes were reused, each of its own revision"


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_thousand_publishes_under_load_leave_no_answer_that_is_wrong(connection: Connection, tmp_path: Path) -> None:
    load = Load()
    check(await measured(connection, tmp_path, load, Hashes()), load)


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_the_benchmark_brings_its_own_registrar_and_loads_the_base_it_is_told_to(connection: Connection, tmp_path: Path) -> None:
    settings = await fleet_settings(connection, tmp_path)
    load = Load(publishes=12, adapters=4)
    found = await run(settings, load, with_model=True)
    check(found, load)
    assert found["reused_prompt_tokens"] > 0 and found["machine"]["cores"] >= 1
