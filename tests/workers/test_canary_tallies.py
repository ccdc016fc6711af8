"""What serving workers count of canaries, what they tell of it, and the fleet's sum of that."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from mint_stream.bus.connection import Connection
from mint_stream.bus.table import LogRecord
from mint_stream.catalog import Catalog, Entry
from mint_stream.catalog.canary import falls_to
from mint_stream.errors import AdapterNotLoaded, Cancelled, InvalidRequest
from mint_stream.messages.adapters import Canary, Head, head_key
from mint_stream.messages.fleet import WorkerStatus
from mint_stream.messages.gates import ArmTally, CanaryTally, Trial, TrialPhase
from mint_stream.messages.inference import InferenceRequest
from mint_stream.promotion.canary import bucket_of
from mint_stream.workers.canary_counts import CanaryCounts
from mint_stream.workers.canary_tallies import COUNTED, CanaryTallies
from tests.factories import random_weights
from tests.serving_desk import Desk


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog(None, 1) as catalog:
        yield catalog


def trial(name: str = "t", phase: TrialPhase = "canary") -> Trial:
    return Trial(trial_id=name, number=2, phase=phase, since_ms=0)


def put(catalog: Catalog, adapter_id: str, on_trial: Trial | None) -> None:
    head = Head(adapter_id=adapter_id, pool="p", next_number=3, aliases={"production": 1}, rule="gated", trial=on_trial)
    offset = catalog.positions().get(0, 0)
    catalog.apply(0, [Entry(head_key(adapter_id), head.encode(), offset)], offset + 1)


def asks(adapter: str | None) -> InferenceRequest:
    return InferenceRequest(request_id=uuid4().hex, adapter=adapter, prompt="x")


def test_only_requests_for_production_during_a_canary_are_counted_each_for_who_answered(catalog: Catalog) -> None:
    put(catalog, "a", trial())
    put(catalog, "at-gate", trial("g", "gate"))
    put(catalog, "still", None)
    tallies = CanaryTallies(catalog)
    for adapter in ("a", "a@production", "a@2", "a@candidate", "at-gate", "still", "nobody", None):
        tallies.completed(asks(adapter), canary=adapter == "a", latency_ms=100.0)
    assert tallies.told() == (
        CanaryTally(
            trial_id="t",
            canary=ArmTally(requests=1, latency_ms={bucket_of(100.0): 1}),
            production=ArmTally(requests=1, latency_ms={bucket_of(100.0): 1}),
        ),
    )


def test_the_requesters_own_errors_do_not_count(catalog: Catalog) -> None:
    put(catalog, "a", trial())
    tallies = CanaryTallies(catalog)
    for error in (Cancelled("enough"), InvalidRequest("no"), AdapterNotLoaded("no room")):
        tallies.failed(asks("a"), canary=True, error=error)
    assert (tallies.told()[0].canary.requests, tallies.told()[0].canary.errors) == (1, 1)


def test_a_trial_that_is_over_is_forgotten_and_makes_room(catalog: Catalog) -> None:
    tallies = CanaryTallies(catalog)
    for number in range(COUNTED + 1):
        put(catalog, f"a{number}", trial(f"t{number}"))
        tallies.completed(asks(f"a{number}"), True, 1.0)
    assert {tally.trial_id for tally in tallies.told()} == {f"t{number}" for number in range(COUNTED)}, "a status has to fit a record"
    put(catalog, "a0", None)
    assert len(tallies.told()) == COUNTED - 1
    tallies.completed(asks(f"a{COUNTED}"), True, 1.0)
    assert f"t{COUNTED}" in {tally.trial_id for tally in tallies.told()}


def status(worker: str, life_ms: int, requests: int, errors: int = 0, role: str = "serve") -> LogRecord:
    tally = CanaryTally(trial_id="t", canary=ArmTally(requests=requests, errors=errors, latency_ms={3: requests - errors}))
    told = WorkerStatus(worker_id=worker, role=role, state="ready", canaries=(tally,), started_at_ms=life_ms, at_ms=life_ms)
    return LogRecord(worker.encode(), told.encode(), (), 0, 0)


def test_the_fleets_count_is_the_sum_of_its_workers_last_words_over_all_their_lives() -> None:
    counts = CanaryCounts()
    bad = LogRecord(b"x", b"{", (), 0, 0)
    counts.apply(0, [status("one", 1, 5), bad, status("two", 1, 2), status("one", 1, 7, errors=1)], 0)
    assert (counts.of("t")[0].requests, counts.of("t")[0].errors, counts.of("t")[0].latency_ms) == (9, 1, {3: 8})
    counts.apply(0, [status("one", 2, 3), status("trainer", 1, 9, role="train")], 0)
    assert counts.of("t")[0].requests == 12, "the worker was restarted and counts from 0 again"
    counts.apply(0, [status("one", 2, 4)], 0)
    assert counts.of("t")[0].requests == 13
    counts.forget("t")
    assert counts.of("t")[0].requests == 6
    assert counts.of("another")[0] == ArmTally()


@pytest.fixture
async def desk(connection: Connection, tmp_path: Path) -> AsyncIterator[Desk]:
    desk = await Desk.open(connection, tmp_path)
    await desk.begin()
    yield desk
    await desk.close()


@pytest.mark.kafka
async def test_a_serving_worker_counts_what_it_answers_and_what_it_fails(desk: Desk) -> None:
    """Revision 2 cannot be loaded: whoever falls to the canary gets an error, and each of them is counted."""
    first = desk.publish("a", random_weights())
    broken = first.model_copy(update={"number": 2, "digest": "e" * 64, "uri": f"{desk.store.uri}/adapters/none"})
    canary = Canary(number=2, share_basis_points=5000)
    desk.write(first)
    desk.write(broken, aliases={"production": 1}, canary=canary, rule="gated", trial=trial())
    asked = [await desk.ask("x", adapter="a", request_id=f"tally-{uuid4().hex}") for _ in range(20)]
    pinned = [await desk.ask("x", adapter="a@1"), await desk.ask("x")]
    results = [await desk.result(request_id) for request_id in (*asked, *pinned)]
    fallen = sum(falls_to(canary, ("default", request_id)) for request_id in asked)
    (tally,) = desk.tallies.told()
    assert (tally.canary.requests, tally.canary.errors, tally.canary.latency_ms) == (fallen, fallen, {})
    assert (tally.production.requests, tally.production.errors) == (20 - fallen, 0)
    assert sum(tally.production.latency_ms.values()) == 20 - fallen
    assert sum(result.status == "error" for result in results) == fallen
