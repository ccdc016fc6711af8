"""`mint-stream jobs` against a trainer that only talks: it takes each job from its topic and tells the life it was given."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from typer.testing import Result

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.cli.watching import note_of
from mint_stream.messages.shared import ErrorBody
from mint_stream.messages.training import TrainingControl, TrainingEvent, TrainingJob
from mint_stream.store import Store
from tests.provisioned import ensure_topics

pytestmark = pytest.mark.kafka

Command = Callable[..., Awaitable[Result]]
GOOD: tuple[dict[str, Any], ...] = (
    {"state": "running", "step": 0},
    {"state": "running", "step": 1, "heartbeat": True},
    {"state": "running", "step": 2, "loss": 0.5, "tokens_per_s": 100.0},
    {"state": "succeeded", "step": 4, "number": 1},
)


@pytest.fixture
async def command(run, connection: Connection, topic_prefix: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`await command("list")` is `mint-stream jobs list` of a pool that only this test has."""
    await ensure_topics(connection, topic_prefix)
    monkeypatch.setenv("MINT_POOL", topic_prefix)
    monkeypatch.setenv("MINT_STORE__URI", (tmp_path / "store").as_uri())
    return lambda *arguments: asyncio.to_thread(run, "jobs", *arguments, "--bootstrap", connection.bootstrap_servers)


@pytest.fixture
def dataset(tmp_path) -> str:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "a", "completion": "b"}\n')
    return str(lines)


@asynccontextmanager
async def talking_trainer(connection: Connection, pool: str, life: Sequence[dict[str, Any]] = GOOD) -> AsyncIterator[list[TrainingJob]]:
    """Tells `life` of every job of the pool; gives the jobs it took."""
    taken: list[TrainingJob] = []
    waiting: asyncio.Queue[TrainingJob] = asyncio.Queue()

    def apply(_: int, records: Sequence[LogRecord], __: int) -> None:
        for record in records:
            waiting.put_nowait(TrainingJob.decode(record.value))

    async def work() -> None:
        while True:
            taken.append(job := await waiting.get())
            await tell(connection, job, *life)

    reader = LogReader(connection, contracts.TRAINING_JOBS.name(pool), apply)
    await reader.start()
    working = asyncio.create_task(work())
    try:
        yield taken
    finally:
        working.cancel()
        await reader.stop()


async def tell(connection: Connection, job: TrainingJob, *changes: dict[str, Any]) -> None:
    producer = Producer(connection, source="test")
    await producer.start()
    about = {"job_id": job.job_id, "adapter_id": job.adapter_id, "tenant": "t", "worker_id": "w", "steps": job.hyperparameters.steps}
    for change in changes:
        await producer.publish(contracts.TRAINING_EVENTS, TrainingEvent(**about, **change, at_ms=1), job.job_id)
    await producer.stop()


async def test_a_job_submitted_with_watch_stays_until_it_ends(command: Command, connection: Connection, topic_prefix: str, dataset: str):
    async with talking_trainer(connection, topic_prefix) as taken:
        shown = await command("submit", "poet", dataset, "--steps", 4, "--job-id", topic_prefix, "--watch")
    assert shown.exit_code == 0, shown.output
    first, last = shown.stdout.splitlines()
    assert first == f"job {topic_prefix} submitted to pool {topic_prefix}"
    assert last == f"job {topic_prefix} succeeded at step 4/4: revision 1"
    assert [job.job_id for job in taken] == [topic_prefix]


async def test_for_machines_a_watched_job_is_a_line_an_event_without_heartbeats(
    command: Command, connection: Connection, topic_prefix: str, dataset: str
):
    async with talking_trainer(connection, topic_prefix):
        shown = await command("submit", "poet", dataset, "--steps", 4, "--job-id", topic_prefix, "--watch", "--json")
    events = [TrainingEvent.model_validate_json(line) for line in shown.stdout.splitlines()]
    assert [(event.state, event.step) for event in events] == [("running", 0), ("running", 2), ("succeeded", 4)]


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ({"state": "failed", "error": ErrorBody(code="training-diverged", message="loss is nan")}, "failed at step 0/4: training-diverged"),
        ({"state": "cancelled", "step": 3}, "cancelled at step 3/4"),
        ({"state": "failed", "error": ErrorBody(code="invalid-dataset", message="line 3: [/oops]")}, "line 3: [/oops]"),
    ],
)
async def test_a_watched_job_that_does_not_succeed_fails_the_command(
    command: Command, connection: Connection, topic_prefix: str, dataset: str, end: dict[str, Any], says: str
):
    async with talking_trainer(connection, topic_prefix, [end]):
        shown = await command("submit", "poet", dataset, "--steps", 4, "--job-id", topic_prefix, "--watch")
    assert shown.exit_code == 1 and says in shown.stdout.splitlines()[-1]
    listed = next(row for row in (await command("list")).stdout.splitlines() if row.startswith(topic_prefix))
    assert f" {end['state']} " in listed and ("error" not in end or listed.endswith(end["error"].message))


async def test_a_graded_jobs_options_are_in_its_record_and_its_rewards_are_its_curve(
    command: Command, connection: Connection, topic_prefix: str, dataset: str
):
    options = {"--grader": "regex", "--loss": "cispo", "--group-size": 4, "--max-tokens": 9, "--temperature": 0.7, "--max-staleness": 2}
    flat = [part for option in options.items() for part in option]
    learning = [
        {"state": "running", "step": step, "loss": 7.0, "rollouts": {"staleness": 0, "graded": 8, "dropped": 0, "reward": reward}}
        for step, reward in ((1, 0.25), (2, 0.75))
    ]
    async with talking_trainer(connection, topic_prefix, [*learning, {"state": "succeeded", "step": 2}]) as taken:
        shown = await command("submit", "poet", dataset, "--method", "grpo", *flat, "--steps", 2, "--job-id", topic_prefix, "--watch")
        refused = await command("submit", "poet", dataset, "--method", "grpo")
        logs = await command("logs", topic_prefix)
    assert shown.exit_code == 0, shown.output
    (job,) = taken
    assert (job.method, job.publish_every_steps) == ("grpo", 1) and job.rollouts is not None
    assert list(job.rollouts.model_dump().values()) == ["regex", "cispo", 4, 9, 0.7, 2]
    assert refused.exit_code != 0 and "method grpo and rollouts go together" in refused.output
    assert any(line.lstrip().startswith("0.75") for line in logs.stdout.splitlines()), logs.stdout


async def test_every_option_is_in_the_record_that_trainers_read(command: Command, connection: Connection, topic_prefix: str, dataset: str):
    options = {
        "--method": "dpo",
        "--dpo-beta": 0.3,
        "--steps": 7,
        "--batch-size": 3,
        "--lr": 1e-3,
        "--warmup-steps": 2,
        "--schedule": "cosine",
        "--rank": 5,
        "--alpha": 9.0,
        "--dropout": 0.25,
        "--max-length": 77,
        "--seed": 6,
        "--parent": 2,
        "--publish-every": 4,
        "--checkpoint-every": 3,
        "--priority": -2,
        "--tenant": "acme",
        "--rule": "auto",
    }
    flat = [part for option in options.items() for part in option]
    async with talking_trainer(connection, topic_prefix) as taken:
        targets = ("--target", "q_proj", "--target", "v_proj", "--rslora")
        printed = await command("submit", "poet", dataset, *flat, *targets, "--json")
        job = TrainingJob.model_validate_json(printed.stdout)
        await command("watch", job.job_id)
    assert taken == [job]
    how, lora = job.hyperparameters, job.lora
    assert (how.steps, how.batch_size, how.learning_rate, how.warmup_steps, how.schedule, how.max_length_tokens) == (
        7,
        3,
        1e-3,
        2,
        "cosine",
        77,
    )
    assert (lora.rank, lora.alpha, lora.dropout, lora.use_rslora, lora.target_modules) == (5, 9.0, 0.25, True, ("q_proj", "v_proj"))
    assert (job.method, how.dpo_beta) == ("dpo", 0.3)
    assert (job.seed, job.parent, job.publish_every_steps, job.checkpoint_every_steps, job.promotion) == (6, 2, 4, 3, "auto")
    assert (job.priority, job.tenant) == (-2, "acme")


async def test_a_local_dataset_travels_through_the_store_and_a_uri_stays_as_it_is(command: Command, tmp_path, dataset: str):
    job = TrainingJob.model_validate_json((await command("submit", "poet", dataset, "--json")).stdout)
    store = Store((tmp_path / "store").as_uri())
    assert store.read_object(job.dataset_uri.removeprefix(f"{store.uri}/")).decode() == '{"prompt": "a", "completion": "b"}\n'
    elsewhere = TrainingJob.model_validate_json((await command("submit", "poet", "s3://bucket/lines.jsonl", "--json")).stdout)
    assert elsewhere.dataset_uri == "s3://bucket/lines.jsonl" and elsewhere.job_id != job.job_id


async def test_a_job_that_is_refused_stores_nothing(command: Command, tmp_path, dataset: str):
    refused = await command("submit", "poet", dataset, "--steps", 5, "--warmup-steps", 5)
    assert refused.exit_code == 1 and refused.stderr.startswith("error invalid-job: ")
    assert Store((tmp_path / "store").as_uri()).list_objects("datasets") == []


async def test_a_dataset_that_is_not_there_is_named_before_anything_is_submitted(command: Command, tmp_path):
    refused = await command("submit", "poet", tmp_path / "nowhere.jsonl")
    assert refused.exit_code == 1 and refused.stderr.startswith("error invalid-dataset: ") and "nowhere.jsonl" in refused.stderr


async def test_cancelling_is_a_record_with_the_reason(command: Command, connection: Connection, topic_prefix: str):
    said: asyncio.Queue[TrainingControl] = asyncio.Queue()

    def apply(_: int, records: Sequence[LogRecord], __: int) -> None:
        for record in records:
            said.put_nowait(TrainingControl.decode(record.value))

    reader = LogReader(connection, contracts.TRAINING_CONTROLS.name(), apply, "latest")
    await reader.start()
    shown = await command("cancel", topic_prefix, "--reason", "wrong data", "--json")
    control = await said.get()
    await reader.stop()
    assert json.loads(shown.stdout) == {"job_id": topic_prefix, "action": "cancel"}
    assert (control.job_id, control.action, control.reason) == (topic_prefix, "cancel", "wrong data")


async def test_pausing_and_resuming_are_records_that_say_who_asks_and_are_refused_where_they_make_no_sense(
    command: Command, connection: Connection, topic_prefix: str, dataset: str
):
    stranger = await command("pause", f"{topic_prefix}-stranger")
    assert stranger.exit_code == 1 and stranger.stderr.startswith("error unknown-job: ")
    await command("submit", "poet", dataset, "--steps", 4, "--job-id", topic_prefix)
    assert (await command("resume", topic_prefix)).stderr.startswith(
        f"error control-refused: job {topic_prefix} cannot be resumed: it is not"
    )
    paused = await command("pause", topic_prefix, "--reason", "night", "--json")
    assert paused.exit_code == 0 and json.loads(paused.stdout) == {"job_id": topic_prefix, "action": "pause"}
    assert "it is already paused" in (await command("pause", topic_prefix)).stderr
    assert (await command("resume", topic_prefix)).stdout == f"job {topic_prefix}: resume requested\n"
    job = TrainingJob(job_id=topic_prefix, adapter_id="poet", dataset_uri="s3://d", hyperparameters={"steps": 4}, submitted_at_ms=1)
    await tell(connection, job, {"state": "succeeded"})
    assert "it has ended, succeeded" in (await command("pause", topic_prefix)).stderr


async def test_a_list_has_each_job_once_as_it_stands(command: Command, connection: Connection, topic_prefix: str, dataset: str):
    names = [f"{topic_prefix}-{number}" for number in range(3)]
    async with talking_trainer(connection, topic_prefix):
        for name in names:
            await command("submit", "poet", dataset, "--steps", 4, "--job-id", name, "--watch")
    events = [event for event in json.loads((await command("list", "--json")).stdout) if event["job_id"] in names]
    assert sorted(event["job_id"] for event in events) == names
    assert {(event["state"], event["step"], event["loss"], event["number"]) for event in events} == {("succeeded", 4, 0.5, 1)}
    rows = (await command("list")).stdout.splitlines()
    assert rows[0].split() == ["job", "adapter", "state", "step", "loss", "eta", "revision", "why"]
    assert [row.split() for row in rows if names[1] in row] == [[names[1], "poet", "succeeded", "4/4", "0.5000", "-", "1", "-"]]


async def test_a_list_and_a_look_back_tell_how_long_a_job_takes_and_what_it_waits_for(
    command: Command, connection: Connection, topic_prefix: str
):
    fields = {"adapter_id": "poet", "dataset_uri": "s3://d", "hyperparameters": {"steps": 4}, "submitted_at_ms": 1}
    running, waiting = (TrainingJob(job_id=f"{topic_prefix}-{which}", **fields) for which in ("running", "waiting"))
    await tell(connection, running, {"state": "running", "step": 2, "loss": 0.5, "eta_s": 3725.0}, {"state": "running", "heartbeat": True})
    await tell(
        connection, waiting, {"state": "running", "step": 2, "eta_s": 9.0}, {"state": "paused", "step": 2, "reason": "paused by ann: night"}
    )
    rows = {row.split()[0]: row for row in (await command("list")).stdout.splitlines()}
    assert rows[running.job_id].split()[2:] == ["running", "0/4", "0.5000", "1:02:05", "-", "-"]
    assert (
        " paused " in rows[waiting.job_id]
        and rows[waiting.job_id].endswith("paused by ann: night")
        and "0:00:09" not in rows[waiting.job_id]
    )
    assert (await command("logs", waiting.job_id)).stdout.splitlines()[-1].endswith("paused by ann: night")
    shown = {row.split()[0]: row.split()[-1] for row in (await command("show", running.job_id)).stdout.splitlines()}
    assert (shown["state"], shown["eta"], shown["why"], shown["tenant"], shown["trainer"]) == ("running", "1:02:05", "-", "t", "w")
    assert json.loads((await command("show", waiting.job_id, "--json")).stdout)["reason"] == "paused by ann: night"
    stranger = await command("show", f"{topic_prefix}-stranger")
    assert stranger.exit_code == 1 and stranger.stderr.startswith("error unknown-job: ")


def test_a_watched_event_says_why_it_is_so_and_what_is_left() -> None:
    about = {"job_id": "j", "adapter_id": "a", "tenant": "t", "worker_id": "w", "steps": 4, "at_ms": 1}
    queued = TrainingEvent(**about, state="queued", reason="all 8 seats of the trainer are taken")
    assert note_of(queued) == "all 8 seats of the trainer are taken"
    assert (
        note_of(TrainingEvent(**about, state="running", loss=0.5, tokens_per_s=10, eta_s=61)) == "loss 0.5000 · 10 tokens/s · 0:01:01 left"
    )


async def test_looking_back_on_a_job_shows_what_was_said_and_its_curve(connection, command: Command, topic_prefix: str, dataset: str):
    learning = tuple({"state": "running", "step": step, "loss": 4.0 / step} for step in range(1, 5))
    async with talking_trainer(connection, topic_prefix, (*learning, {"state": "running", "step": 4, "heartbeat": True}, GOOD[-1])):
        await command("submit", topic_prefix, dataset, "--steps", "4", "--job-id", topic_prefix, "--watch")
    shown = await command("logs", topic_prefix)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert [line.split()[3] for line in lines[1:6]] == ["running"] * 4 + ["succeeded"]
    assert any(line.startswith("4 │") for line in lines) and any(line.startswith("1 │") for line in lines), "its highest and lowest loss"
    told = [json.loads(line) for line in (await command("logs", topic_prefix, "--json")).stdout.splitlines()]
    assert [one.get("loss") for one in told] == [4.0, 2.0, pytest.approx(4 / 3), 1.0, None]


async def test_a_job_that_nobody_has_taken_has_nothing_to_look_back_on(command: Command, topic_prefix: str):
    shown = await command("logs", topic_prefix)
    assert shown.exit_code == 1
    assert "no trainer has said anything" in shown.stderr
