"""Who has a job follows from the last thing said of it."""

import pytest

from mint_stream.bus.connection import Connection
from mint_stream.bus.table import LogRecord
from mint_stream.errors import InvalidRecord
from mint_stream.messages.training import Action, TrainingControl, TrainingEvent
from mint_stream.trainer.run import StepReport
from mint_stream.workers.job_log import JobLog, LastSeen, standing
from mint_stream.workers.job_report import Progress, obituary

SILENCE_MS = 1000


def seen(state: str, worker_id: str = "other", at_ms: int = 0) -> LastSeen:
    return LastSeen(state, 1, worker_id, at_ms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("last", "now_ms", "expected"),
    [
        (None, 0, "free"),
        (seen("queued"), 0, "free"),
        (seen("paused"), 0, "free"),
        (seen("running"), SILENCE_MS - 1, "held"),
        (seen("claimed"), SILENCE_MS - 1, "held"),
        (seen("publishing"), SILENCE_MS - 1, "held"),
        (seen("running"), SILENCE_MS, "free"),
        (seen("running", "me"), 0, "free"),
        (seen("succeeded", "me"), 0, "over"),
        (seen("cancelled"), 10 * SILENCE_MS, "over"),
    ],
)
def test_a_job_is_held_until_its_trainer_is_silent_and_over_for_ever(last: LastSeen | None, now_ms: int, expected: str) -> None:
    assert standing(last, "me", now_ms, SILENCE_MS) == expected


def record(offset: int, **fields: object) -> LogRecord:
    event = {"job_id": "j", "adapter_id": "a", "tenant": "t", "worker_id": "w", "steps": 1, "at_ms": 0, "state": "running"} | fields
    return LogRecord(None, TrainingEvent.model_validate(event).encode(), (), offset, 1000 * offset)


async def known(*records: LogRecord) -> LastSeen | None:
    log = JobLog(Connection("unused:1"))
    log.apply_events(0, records, len(records))
    return log._last.get("j")


async def test_the_last_event_of_the_highest_attempt_counts() -> None:
    last = await known(record(0, attempt=1), record(1, attempt=2, worker_id="w2"), record(2, attempt=1, state="failed"))
    assert last == LastSeen("running", 2, "w2", 1000)


async def test_nothing_said_after_the_end_changes_it() -> None:
    last = await known(record(0, attempt=1, state="succeeded"), record(1, attempt=2))
    assert last is not None and last.state == "succeeded"


def control(job_id: str, action: Action = "cancel", **fields: str) -> LogRecord:
    return LogRecord(None, TrainingControl(job_id=job_id, action=action, issued_at_ms=0, **fields).encode(), (), 0, 0)


async def test_a_job_is_paused_until_the_last_word_is_a_resume_or_it_is_cancelled() -> None:
    log = JobLog(Connection("unused:1"))
    for action, expected in (("pause", True), ("pause", True), ("resume", False), ("pause", True), ("cancel", False), ("pause", False)):
        log.apply_controls(0, [control("j", action)], 1)  # type: ignore[arg-type]
        assert (log.pausing("j") is not None) == expected
    log.apply_controls(0, [control("k", "pause", reason="night", issued_by="ann")], 1)
    assert log.pausing("k") == "paused by ann: night" and log.pausing("stranger") is None


async def test_a_job_that_is_told_as_paused_stays_parked_without_its_control_until_a_resume_or_a_cancellation() -> None:
    """Controls are kept for a shorter time than events."""
    log = JobLog(Connection("unused:1"))
    log.apply_events(0, [record(0, job_id=job, state="paused", attempt=1) for job in "jk"], 1)
    assert log.parked("j") and log.parked("k") and not log.parked("stranger")
    log.apply_controls(0, [control("j", "resume"), control("k")], 1)
    assert not log.parked("j") and not log.parked("k")


async def test_a_paused_job_is_left_by_the_queue_and_not_by_a_late_sign_of_life() -> None:
    paused = record(0, attempt=1, state="paused")
    for late in ({"heartbeat": True}, {"state": "publishing"}, {"state": "claimed"}):
        last = await known(paused, record(1, attempt=1, **late))
        assert last is not None and last.state == "paused"
    for after in ({"state": "queued", "attempt": 1}, {"state": "cancelled", "attempt": 1}, {"state": "claimed", "attempt": 2}):
        last = await known(paused, record(1, **after))
        assert last is not None and last.state == after["state"]


async def test_of_a_tenants_jobs_those_count_that_another_trainer_has_in_training_and_is_not_silent_of() -> None:
    log = JobLog(Connection("unused:1"))
    states = ("queued", "claimed", "running", "paused", "publishing", "succeeded", "failed")
    log.apply_events(0, [record(1, job_id=f"j{place}", attempt=1, state=state) for place, state in enumerate(states)], 1)
    log.apply_events(0, [record(1, job_id="mine", attempt=1, worker_id="me"), record(1, job_id="theirs", attempt=1, tenant="u")], 1)
    assert log.at_work_elsewhere("t", "me", 1500, SILENCE_MS) == 3
    assert log.at_work_elsewhere("t", "me", 2000, SILENCE_MS) == 0, "they have been silent for too long"
    assert log.at_work_elsewhere("nobody", "me", 1500, SILENCE_MS) == 0


async def test_what_was_asked_of_a_job_is_forgotten_with_its_end_and_the_oldest_where_it_is_too_much() -> None:
    log = JobLog(Connection("unused:1"), remembered=3)
    log.apply_controls(0, [control("j", "pause")], 1)
    log.apply_events(0, [record(0, job_id="j", attempt=1, state="succeeded")], 1)
    assert log.pausing("j") is None
    log.apply_controls(0, [control(f"unknown-{number}", "pause") for number in range(5)], 7)
    assert [number for number in range(5) if log.pausing(f"unknown-{number}")] == [2, 3, 4]


async def test_of_jobs_that_are_over_the_last_ones_are_remembered_and_of_others_all() -> None:
    log = JobLog(Connection("unused:1"), remembered=3)
    log.apply_events(0, [record(0, job_id="runs", attempt=1)], 1)
    for number in range(10):
        log.apply_events(0, [record(number, job_id=f"j{number}", attempt=1, state="succeeded")], 1)
    assert set(log._last) == {"runs", "j7", "j8", "j9"}


async def test_a_cancellation_is_forgotten_when_its_job_is_over_or_when_there_are_too_many() -> None:
    log = JobLog(Connection("unused:1"), remembered=3)
    log.apply_controls(0, [control("j")], 1)
    assert log.cancelled("j")
    log.apply_events(0, [record(0, job_id="j", attempt=1, state="cancelled")], 1)
    log.apply_controls(0, [control("j")], 2)
    assert log.cancelled("j") is None
    log.apply_controls(0, [control(f"unknown-{number}") for number in range(5)], 7)
    assert [number for number in range(5) if log.cancelled(f"unknown-{number}")] == [2, 3, 4]


async def test_unreadable_records_are_passed_over() -> None:
    bad = LogRecord(b"j", b"\xff", (), 0, 0)
    assert await known(bad, LogRecord(b"j", None, (), 1, 0)) is None
    log = JobLog(Connection("unused:1"))
    log.apply_controls(0, [bad], 1)
    control = TrainingControl(job_id="j", action="cancel", issued_at_ms=0)
    log.apply_controls(0, [LogRecord(b"j", control.encode(), (), 1, 0)], 2)
    assert log.cancelled("j") == "cancelled by its owner" and log.cancelled("k") is None


async def test_waiting_ends_when_something_is_said_and_after_the_time_given() -> None:
    log = JobLog(Connection("unused:1"))
    await log.moved(0.001)


@pytest.mark.parametrize(
    "value",
    [
        *(None, b"", b"\xff", b"[]", b"1", b'{"job_id": "j"}', b'{"job_id": "", "adapter_id": "a"}'),
        pytest.param(b'{"job_id": "j", "adapter_id": "a", "b": ' + b"[" * 50_000, id="deeper than any parser goes"),
        pytest.param(b'{"job_id": "\\ud800", "adapter_id": "a"}', id="an id that UTF-8 cannot write"),
    ],
)
def test_a_record_that_names_no_job_has_no_obituary(value: bytes | None) -> None:
    assert obituary(value, InvalidRecord("x"), "w", "rejected") is None


def test_an_obituary_names_the_job_and_the_reason() -> None:
    event = obituary(b'{"job_id": "j", "adapter_id": "a", "nonsense": 1}', InvalidRecord("why"), "w", "rejected")
    assert event is not None and event.error is not None
    assert (event.job_id, event.state, event.fault, event.error.code) == ("j", "rejected", "user", "invalid-record")


def test_progress_is_told_at_the_first_and_the_last_step_and_not_more_often_than_asked() -> None:
    progress = Progress(steps=4, every_s=3600)
    told = [progress.add(StepReport(step, 1.0, 0.1, 2.0, tokens=10)) for step in (1, 2, 3, 4)]
    assert [fields is not None for fields in told] == [True, False, False, True]
    assert told[3] is not None and told[3]["eta_s"] == 0.0 and told[3]["tokens_per_s"] > 0
