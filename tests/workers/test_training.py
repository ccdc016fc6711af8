"""The training worker on a real broker with a real registrar: jobs become revisions, whatever happens in between."""

import asyncio
import json
import math
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from aiokafka import AIOKafkaConsumer, TopicPartition

from mint_stream import contracts
from mint_stream.app.environment import environment_of
from mint_stream.app.train import TrainRole
from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.bus.producer import BROKER_LIMIT_BYTES, Outgoing
from mint_stream.bus.seating import Claim, seats
from mint_stream.errors import DeviceLost, EngineFailed
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.training import LoraSettings, TrainingJob
from mint_stream.model.base import ResidentBase
from mint_stream.store.files import file_path
from mint_stream.trainer.run import TrainingRun
from mint_stream.trainer.trainer import Outcome, Trainer
from mint_stream.trainer.workshop import Workshop
from tests.training_system import GOOD, PARTITIONS, POOL, TrainingSystem

pytestmark = [pytest.mark.kafka]

JOBS = contracts.TRAINING_JOBS.name(POOL)


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TrainingSystem]:
    async with TrainingSystem(tmp_path_factory.mktemp("training")) as system:
        yield system


@pytest.fixture
def name() -> str:
    """A job_id and adapter_id no other test uses."""
    return f"n{uuid.uuid4().hex[:10]}"


async def committed_to_the_end(system: TrainingSystem) -> bool:
    """Whether every record of training-jobs is closed and committed."""
    consumer = AIOKafkaConsumer(group_id=f"train-{POOL}", enable_auto_commit=False, **system.connection.options())
    await consumer.start()
    try:
        partitions = [TopicPartition(JOBS, number) for number in range(PARTITIONS)]
        ends = await consumer.end_offsets(partitions)
        return all([(await consumer.committed(one) or 0) == ends[one] for one in partitions])
    finally:
        await consumer.stop()


async def test_a_job_becomes_a_revision_in_production_and_says_so_on_the_way(system: TrainingSystem, name: str) -> None:
    async with system.trainer():
        await system.submit(system.job(name, name, publish_every_steps=2))
        end = await system.ended(name)
    assert (end.state, end.number, end.step, end.attempt) == ("succeeded", 2, 4, 1)
    assert system.states(name)[:3] == ["queued", "claimed", "running"] and "publishing" in system.states(name)
    progress = await system.heard(name, lambda event: event.loss is not None)
    assert progress.learning_rate and progress.grad_norm and progress.tokens_per_s and progress.eta_s is not None
    revisions = await system.revisions(name)
    assert [(number, job, step) for number, job, step, _ in revisions] == [(1, name, 2), (2, name, 4)]
    assert system.catalog.resolve(name).number == 2
    manifest = system.store.read_manifest(system.catalog.resolve(name).uri or "")
    assert manifest.numeric_fingerprint is not None and manifest.metrics["loss"] > 0
    assert await committed_to_the_end(system)


async def test_a_job_goes_on_from_the_parent_it_names(system: TrainingSystem, name: str) -> None:
    async with system.trainer():
        await system.submit(system.job(f"{name}-1", name))
        await system.submit(system.job(f"{name}-2", name, parent=1, lora=LoraSettings()))
        assert (await system.ended(f"{name}-2")).number == 2
    assert system.catalog.revisions(name)[1].parent == 1
    assert system.states(f"{name}-1")[-1] == "succeeded"


IMPOSSIBLE: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "line": ("bad.jsonl", {}, "invalid-dataset", "line 13: not JSON"),
    "file": ("absent.jsonl", {}, "invalid-dataset", "there is no file"),
    "root": ("../outside.jsonl", {}, "uri-not-allowed", "not below a root"),
    "parent": (GOOD, {"parent": 7}, "unknown-revision", "@7 does not exist"),
    "rank": (GOOD, {"lora": LoraSettings(rank=512)}, "invalid-job", "over this pool's cap"),
    "length": (GOOD, {"hyperparameters": {"max_length_tokens": 100_000}}, "invalid-job", "exceeds the base's context"),
}


async def test_jobs_that_cannot_be_are_rejected_by_name_and_the_next_one_runs(system: TrainingSystem, name: str) -> None:
    (system.data / "bad.jsonl").write_bytes((system.data / GOOD).read_bytes() + b"{oops\n")
    (system.home / "outside.jsonl").write_bytes((system.data / GOOD).read_bytes())
    for what, (file, changes, _, _) in IMPOSSIBLE.items():
        await system.submit(system.job(f"{name}-{what}", name, file, **changes))
    await system.submit(system.job(f"{name}-good", name, hyperparameters={"steps": 1}))
    async with system.trainer():
        assert ((await system.ended(f"{name}-good")).state, len(await system.revisions(name))) == ("succeeded", 1)
    for what, (_, _, code, words) in IMPOSSIBLE.items():
        end = await system.ended(f"{name}-{what}")
        assert (end.state, end.fault, end.error and end.error.code) == ("rejected", "user", code)
        assert end.error is not None and words in end.error.message


async def test_a_record_that_is_no_job_is_dead_lettered_told_and_passed_by(system: TrainingSystem, name: str) -> None:
    good = system.job(f"{name}-good", name, hyperparameters={"steps": 1})
    broken = json.loads(good.encode()) | {"job_id": f"{name}-bad", "hyperparameters": {"steps": 0}}
    values = [b"\xff not json", None, json.dumps(broken).encode()]
    partition = murmur2_partition(name.encode(), PARTITIONS)
    for value in values:
        await system.raw(JOBS, value, name.encode(), partition, (("odd", b"\xff\xfe"),))
    async with system.trainer():
        await system.submit(good)
        assert (await system.ended(f"{name}-good")).state == "succeeded"
        told = await system.ended(f"{name}-bad")
        assert told.state == "rejected" and told.error is not None and "hyperparameters.steps" in told.error.message
    assert await dead_letters(system, name) == values
    assert await committed_to_the_end(system)


async def test_records_as_large_as_a_topic_takes_end_no_trainer(system: TrainingSystem, name: str) -> None:
    """What is said of them quotes them and has to fit into a record as well, and so has one that is forwarded."""
    fields = {"job_id": f"{name}-uri", "adapter_id": name, "dataset_uri": "file:///@", "submitted_at_ms": 1}
    fields["hyperparameters"] = {"steps": 1, "max_length_tokens": 128}
    targets = fields | {"dataset_uri": (system.data / GOOD).as_uri(), "lora": {"target_modules": ["@"]}}
    control = {"job_id": f"{name}-good", "action": "cancel", "reason": "@", "issued_at_ms": 1}
    partition = murmur2_partition(name.encode(), PARTITIONS)
    async with system.trainer():
        await system.raw(contracts.TRAINING_CONTROLS.name(), largest(control))
        await system.raw(JOBS, largest(fields), name.encode(), partition)
        await system.raw(JOBS, largest(targets | {"job_id": f"{name}-targets"}), name.encode(), partition)
        await system.raw(JOBS, largest(targets | {"job_id": f"{name}-stray"}), name.encode(), 1 - partition)
        ends = [await system.ended(f"{name}-{which}") for which in ("uri", "targets", "stray")]
        await system.submit(system.job(f"{name}-good", name, hyperparameters={"steps": 1}))
        assert (await system.ended(f"{name}-good")).state == "succeeded"
    assert [(end.state, end.error and end.error.code) for end in ends] == [("rejected", "invalid-record")] + [
        ("rejected", "invalid-job")
    ] * 2
    assert [end.error and end.error.message.count("xxxx…") for end in ends] == [0, 1, 1]
    assert len(await dead_letters(system, name)) == 1
    assert await committed_to_the_end(system)


def largest(fields: dict[str, Any]) -> bytes:
    """The JSON of these fields with so much text for the @ in it that Kafka just takes the record."""
    value = json.dumps(fields).encode()
    room = BROKER_LIMIT_BYTES - Outgoing("", b"k" * 16, value).size_bytes
    return value.replace(b"@", b"x" * room)


async def dead_letters(system: TrainingSystem, key: str) -> list[bytes | None]:
    """The values set aside under this key."""
    consumer = AIOKafkaConsumer(enable_auto_commit=False, **system.connection.options())
    await consumer.start()
    try:
        topic = contracts.TRAINING_JOBS.dead_letter_name(POOL)
        partitions = [TopicPartition(topic, number) for number in await _partitions_of(consumer, topic)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found = []
        while any([await consumer.position(one) < ends[one] for one in partitions]):
            found += [record for records in (await consumer.getmany(timeout_ms=200)).values() for record in records]
    finally:
        await consumer.stop()
    return [record.value for record in found if record.key == key.encode()]


async def _partitions_of(consumer: AIOKafkaConsumer, topic: str) -> list[int]:
    await consumer._client.set_topics([topic])
    return sorted(consumer.partitions_for_topic(topic))


async def test_a_job_in_the_wrong_partition_is_forwarded_to_its_adapters(system: TrainingSystem, name: str) -> None:
    own = murmur2_partition(name.encode(), PARTITIONS)
    async with system.trainer():
        await system.submit(system.job(name, name, hyperparameters={"steps": 1}), partition=1 - own)
        assert (await system.ended(name)).state == "succeeded"
    assert len(await system.revisions(name)) == 1


async def test_a_running_job_is_cancelled_within_a_step_and_the_next_one_runs(system: TrainingSystem, name: str) -> None:
    async with system.trainer():
        await system.submit(system.job(f"{name}-long", name, hyperparameters={"steps": 1_000_000}))
        await system.submit(system.job(f"{name}-next", name, hyperparameters={"steps": 1}))
        await system.heard(f"{name}-long", lambda event: event.step > 0)
        await system.cancel(f"{name}-long")
        end = await system.ended(f"{name}-long")
        assert (end.state, end.error and end.error.code) == ("cancelled", "cancelled")
        assert (await system.ended(f"{name}-next")).state == "succeeded"
    assert [job for _, job, _, _ in await system.revisions(name)] == [f"{name}-next"]


async def test_a_job_cancelled_while_no_trainer_ran_never_starts(system: TrainingSystem, name: str) -> None:
    await system.submit(system.job(name, name))
    await system.cancel(name)
    async with system.trainer():
        assert (await system.ended(name)).state == "cancelled"
    assert "claimed" not in system.states(name)


async def test_a_job_cancelled_while_it_waits_for_its_turn_ends_at_once(system: TrainingSystem, name: str) -> None:
    async with system.trainer(max_jobs=1):
        await system.submit(system.job(f"{name}-long", f"{name}-long", hyperparameters={"steps": 1_000_000}))
        await system.heard(f"{name}-long", lambda event: event.step > 0)
        await system.submit(system.job(f"{name}-waits", f"{name}-waits"))
        await system.heard(f"{name}-waits", lambda event: event.state == "queued")
        await system.cancel(f"{name}-waits")
        assert (await system.ended(f"{name}-waits")).state == "cancelled"
        assert not any(event.terminal for event in system.events if event.job_id == f"{name}-long")
        await system.cancel(f"{name}-long")
        await system.ended(f"{name}-long")


@contextmanager
def away(place: Path) -> Iterator[None]:
    """Within this block what was at `place` cannot be reached, and nothing can be written below it."""
    aside = place.with_name(f"{place.name}.aside")
    place.mkdir(parents=True, exist_ok=True)
    place.rename(aside)
    place.touch()
    try:
        yield
    finally:
        place.unlink()
        aside.rename(place)


class Outage:
    """What is at `place` goes away once the first claim is granted, until `end`."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._held = ExitStack()
        self._begun = False

    def after(self, effect: str) -> None:
        if effect == "claimed" and not self._begun:
            self._begun = True
            self._held.enter_context(away(self._place))

    def end(self) -> None:
        self._held.close()


async def test_a_job_that_cannot_begin_for_the_store_waits_and_the_others_run(system: TrainingSystem, name: str) -> None:
    other = f"{name}-other"
    async with system.trainer():
        await system.submit(system.job(f"{name}-1", name))
        await system.ended(f"{name}-1")
        files = file_path(system.catalog.resolve(name).uri or "")
        with away(files):
            await system.submit(system.job(f"{name}-2", name, parent=1))
            await system.heard(f"{name}-2", lambda event: event.state == "queued")
            await system.submit(system.job(other, other))
            assert (await system.ended(other)).state == "succeeded"
            assert system.states(f"{name}-2") == ["queued"]
        assert (await system.ended(f"{name}-2")).state == "succeeded"
    assert await committed_to_the_end(system)


async def test_a_claimed_job_keeps_its_claim_while_the_store_is_away_and_goes_on(system: TrainingSystem, name: str) -> None:
    outage = Outage(file_path(system.store.uri))
    async with system.trainer(after=outage.after):
        await system.submit(system.job(name, name))
        await system.beats(name, 5)
        outage.end()
        assert ((await system.ended(name)).state, len(await system.revisions(name))) == ("succeeded", 1)
    assert {event.attempt for event in system.events if event.job_id == name and event.state != "queued"} == {1}


async def test_a_job_that_waits_for_the_store_can_be_cancelled(system: TrainingSystem, name: str) -> None:
    outage = Outage(file_path(system.store.uri))
    async with system.trainer(after=outage.after):
        await system.submit(system.job(name, name))
        await system.beats(name, 5)
        await system.cancel(name)
        assert (await system.ended(name)).state == "cancelled"
        outage.end()
        await system.submit(system.job(f"{name}-next", name))
        assert (await system.ended(f"{name}-next")).state == "succeeded"


async def test_a_job_that_diverges_fails_by_the_users_fault(system: TrainingSystem, name: str) -> None:
    async with system.trainer():
        await system.submit(system.job(name, name, hyperparameters={"steps": 50, "learning_rate": 1e30}))
        end = await system.ended(name)
    assert (end.state, end.fault, end.error and end.error.code) == ("failed", "user", "training-diverged")
    assert await system.revisions(name) == []


class RefusesOneJob(TrainRole):
    """Its torch fails whatever is asked for a job whose name ends in "odd"."""

    def _equipped(self, *given: Any) -> tuple[Trainer, Workshop]:
        trainer, workshop = super()._equipped(*given)
        odd: Any = OddTrainer(trainer)
        return odd, workshop


class OddTrainer:
    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self.leave, self.prove = trainer, trainer.leave, trainer.prove

    def advance(self, runs: Sequence[TrainingRun]) -> dict[TrainingRun, Outcome]:
        odd = [run for run in runs if run.job.job_id.endswith("odd")]
        return {run: EngineFailed("an odd shape") for run in odd} or self._trainer.advance(runs)


class LosesItsDevice(TrainRole):
    """From its first step on nothing can be computed any more, as after a CUDA error."""

    def _equipped(self, base: ResidentBase, founder: PoolBase) -> tuple[Trainer, Workshop]:
        def after(effect: str) -> None:
            if effect == "stepped":
                base.model.get_decoder().norm.weight.data = torch.zeros(3)

        self._after = after
        return super()._equipped(base, founder)


async def test_a_job_whose_torch_fails_ends_alone_and_its_trainer_goes_on(system: TrainingSystem, name: str) -> None:
    async with system.trainer(kind=RefusesOneJob):
        for one in (f"{name}-odd", f"{name}-well"):
            await system.submit(system.job(one, one))
        odd, well = await system.ended(f"{name}-odd"), await system.ended(f"{name}-well")
    assert (odd.state, odd.fault, odd.error and odd.error.code) == ("failed", "server", "engine-failed")
    assert well.state == "succeeded" and await committed_to_the_end(system)


async def trained_until_it_ends(system: TrainingSystem, jobs: Sequence[str]) -> None:
    async with system.trainer(kind=LosesItsDevice, max_jobs=2):
        for one in jobs:
            await system.submit(system.job(one, one))
        await asyncio.wait({system.training})


async def test_a_trainer_that_loses_its_device_ends_itself_and_another_one_takes_its_jobs(system: TrainingSystem, name: str) -> None:
    jobs = [f"{name}-{number}" for number in range(3)]
    with pytest.raises(DeviceLost, match="the base alone"):
        await trained_until_it_ends(system, jobs)
    assert not [one for one in jobs for event in system.events if event.job_id == one and event.terminal]
    assert not await committed_to_the_end(system)
    async with system.trainer(worker_id="healthy"):
        ends = [await system.ended(one) for one in jobs]
    assert {(end.state, end.worker_id) for end in ends} == {("succeeded", "healthy")}
    assert await committed_to_the_end(system)


async def test_a_drained_trainer_leaves_its_job_to_the_next_one_which_goes_on_exactly(system: TrainingSystem, name: str) -> None:
    many, saved = {"steps": 100}, asyncio.Event()
    async with system.trainer(after=lambda effect: saved.set() if effect == "checkpoint-durable" else None):
        await system.submit(system.job(name, name, hyperparameters=many))
        await saved.wait()
    assert (await system.heard(name, lambda event: event.state == "queued" and event.attempt == 1)).step >= 2
    async with system.trainer(worker_id="another"):
        await system.submit(system.job(f"{name}-whole", f"{name}-whole", hyperparameters=many))
        await system.ended(name)
        await system.ended(f"{name}-whole")
    resumed = await system.heard(name, lambda event: event.resumed is not None)
    assert (resumed.resumed, resumed.attempt, resumed.worker_id) == ("exact", 2, "another") and resumed.step >= 2
    assert (await system.revisions(name))[0][3] == (await system.revisions(f"{name}-whole"))[0][3]


async def test_a_trainer_whose_job_was_claimed_by_another_one_stops_and_watches(system: TrainingSystem, name: str) -> None:
    """The second trainer is given the partition and takes any silence, even none, for the first one's death."""
    everything = Claim(frozenset(range(PARTITIONS)), held=True)
    moves = seats({"1-first": everything, "2-second": Claim()}, range(PARTITIONS))["2-second"]
    adapter_id = next(one for one in (f"{name}{n}" for n in range(99)) if murmur2_partition(one.encode(), PARTITIONS) in moves)
    job = system.job(name, adapter_id, hyperparameters={"steps": 1_000_000}, checkpoint_every_steps=20, publish_every_steps=20)
    async with system.trainer(worker_id="1-first") as first:
        intake = first._worker._intake
        await intake.until(lambda: len(intake.assigned) == PARTITIONS)
        await system.submit(job)
        await system.heard(name, lambda event: event.number is not None)
        async with system.trainer(worker_id="2-second", silence_s=0.0):
            second = await system.heard(name, lambda event: event.attempt == 2 and (event.number or 0) >= 2)  # 1 may be said again
            await first._readers[0].caught_up()  # its catalog, which tells it
            await system.cancel(name)
            end = await system.ended(name)
    assert (second.worker_id, end.worker_id, end.state, end.attempt) == ("2-second", "2-second", "cancelled", 2)
    steps = [step for _, _, step, _ in await system.revisions(adapter_id)]
    assert steps == [20 * (place + 1) for place in range(len(steps))] and len(steps) >= 2


async def test_jobs_of_different_adapters_train_together_each_with_its_own_end(system: TrainingSystem, name: str) -> None:
    """One diverges, one is cancelled, one cannot begin; the others share passes meanwhile, and end in the bits they have alone."""
    seats, long = Seated(), {"steps": 40}
    other = {"hyperparameters": long | {"batch_size": 2, "weight_decay": 0.1}, "lora": LoraSettings(rank=2, target_modules=("q_proj",))}
    async with system.trainer(seats.after) as seats.role:
        for which, changes in {
            "a": {"hyperparameters": long},
            "b": other,
            "sick": {"hyperparameters": long | {"learning_rate": 1e30}},
            "endless": {"hyperparameters": {"steps": 1_000_000}},
            "none": {"lora": LoraSettings(rank=512)},
        }.items():
            await system.submit(system.job(f"{name}-{which}", f"{name}-{which}", **changes))
        ends = {which: (await system.ended(f"{name}-{which}")).state for which in ("a", "b", "sick", "none")}
        await system.cancel(f"{name}-endless")
        ends["endless"] = (await system.ended(f"{name}-endless")).state
    assert ends == {"a": "succeeded", "b": "succeeded", "sick": "failed", "none": "rejected", "endless": "cancelled"}
    assert seats.most >= 3, "they were in training at once"
    async with system.trainer(max_jobs=1):
        await system.submit(system.job(f"{name}-alone", f"{name}-alone", hyperparameters=long))
        await system.ended(f"{name}-alone")
    assert (await system.revisions(f"{name}-a"))[0][3] == (await system.revisions(f"{name}-alone"))[0][3]


class Seated:
    """How many jobs were in training when a pass ended, at most."""

    role: TrainRole | None = None
    most = 0

    def after(self, effect: str) -> None:
        if effect == "passed" and self.role is not None:
            self.most = max(self.most, self.role.status("ready").running)


async def test_a_job_id_that_is_used_again_for_another_adapter_leaves_the_first_job_alone(system: TrainingSystem, name: str) -> None:
    async with system.trainer():
        await system.submit(system.job(name, f"{name}-a", hyperparameters={"steps": 20}))
        await system.heard(name, lambda event: event.state == "running")
        await system.submit(system.job(name, f"{name}-b"))
        await system.submit(system.job(f"{name}-next", f"{name}-b"))
        assert (await system.ended(f"{name}-next")).state == "succeeded"
    assert [event.state for event in system.events if event.job_id == name and event.terminal] == ["succeeded"]
    assert [job for _, job, _, _ in await system.revisions(f"{name}-b")] == [f"{name}-next"]
    assert [job for _, job, _, _ in await system.revisions(f"{name}-a")] == [name]


async def test_a_preference_job_goes_from_its_record_to_a_revision(system: TrainingSystem, name: str) -> None:
    pairs = [json.dumps({"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": "no idea"}) for n in range(6)]
    (system.data / "pairs.jsonl").write_text("\n".join(pairs))
    async with system.trainer():
        await system.submit(system.job(name, name, "pairs.jsonl", method="dpo", hyperparameters={"steps": 6, "dpo_beta": 0.5}))
        assert (await system.ended(name)).state == "succeeded"
        await system.submit(system.job(f"{name}-bad", name, method="dpo"))
        refused = await system.ended(f"{name}-bad")
    losses = [event.loss for event in system.events if event.job_id == name and event.loss is not None]
    assert losses[0] == pytest.approx(math.log(2), abs=0.01) and losses[-1] < losses[0]
    assert refused.state == "rejected" and refused.error is not None and "chosen: Field required" in refused.error.message


async def test_more_jobs_than_seats_wait_in_line_and_all_end(system: TrainingSystem, name: str) -> None:
    jobs = [f"{name}-{number}" for number in range(5)]
    seats = Seated()
    async with system.trainer(seats.after, max_jobs=2) as seats.role:
        for job in jobs:
            await system.submit(system.job(job, job))
        assert {(await system.ended(job)).state for job in jobs} == {"succeeded"}
    assert seats.most == 2
    assert await committed_to_the_end(system)


async def test_a_job_whose_last_revision_has_to_pass_a_gate_says_that_it_is_judged(system: TrainingSystem, name: str) -> None:
    async with system.trainer():
        for which, rule in {"gated": "gated", "auto": "auto"}.items():
            await system.submit(system.job(f"{name}-{which}", f"{name}-{which}", promotion=rule))
            await system.ended(f"{name}-{which}")
    assert system.states(f"{name}-gated")[-3:] == ["publishing", "evaluating", "succeeded"]
    judged = await system.heard(f"{name}-gated", lambda event: event.state == "evaluating" and not event.heartbeat)
    assert (judged.number, judged.reason) == (1, f"revision 1 is judged by the gate of {name}-gated now")
    assert system.states(f"{name}-auto")[-2:] == ["publishing", "succeeded"]


async def test_of_jobs_in_line_the_urgent_one_is_trained_first(system: TrainingSystem, name: str) -> None:
    priorities = {"low": -1, "plain": 0, "urgent": 5}
    async with system.trainer(max_jobs=1):
        await system.submit(system.job(f"{name}-long", f"{name}-long", hyperparameters={"steps": 1_000_000}))
        await system.heard(f"{name}-long", lambda event: event.step > 0)
        for which, priority in priorities.items():
            await system.submit(system.job(f"{name}-{which}", f"{name}-{which}", priority=priority))
            await system.heard(f"{name}-{which}", lambda event: event.state == "queued" and event.reason is not None)
        await system.cancel(f"{name}-long")
        for which in priorities:
            assert (await system.ended(f"{name}-{which}")).state == "succeeded"
    claimed = [event.job_id for event in system.events if event.state == "claimed" and not event.heartbeat]
    assert [job_id.split("-")[1] for job_id in claimed if job_id.startswith(name)] == ["long", "urgent", "plain", "low"]


@asynccontextmanager
async def script(system: TrainingSystem, file: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One of the scripts of tests/, with the system's settings; nothing of it is left behind."""
    path = Path(__file__).parent.parent / file
    environment = {**os.environ, **environment_of(system.settings), "PYTHONPATH": str(path.parent.parent)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(path), *arguments, stdout=asyncio.subprocess.PIPE, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_a_trainer_that_was_frozen_past_its_silence_and_wakes_up_has_no_write_accepted(system: TrainingSystem, name: str) -> None:
    job = system.job(name, name, hyperparameters={"steps": 400}, checkpoint_every_steps=20, publish_every_steps=40)
    async with script(system, "frozen_trainer.py", "frozen") as frozen:
        assert frozen.stdout is not None
        await frozen.stdout.readline()
        await system.submit(job)
        await system.heard(name, lambda event: event.number == 2)
        frozen.send_signal(signal.SIGSTOP)
        async with system.trainer(worker_id="another", silence_s=1.0):
            end = await system.ended(name)
        finished = await system.revisions(name)
        frozen.send_signal(signal.SIGCONT)
        assert (await frozen.stdout.read()).endswith(b"closed\n") and await frozen.wait() == 0
    assert (end.state, end.worker_id, end.attempt) == ("succeeded", "another", 2)
    assert await system.revisions(name) == finished
    assert [(number, step) for number, _, step, _ in finished] == [(n, 40 * n) for n in range(1, 11)]
    late = [event for event in system.events if event.job_id == name and event.worker_id == "frozen" and event.terminal]
    assert late == [], "and it does not say that the job ended"


EFFECTS = ("claimed", "checkpoint-durable", "files-durable", "announced", "answered", "publish-reported", "end-reported", "record-closed")


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_trainer_killed_after_each_effect_leaves_one_revision_a_step_with_the_bits_of_an_unbroken_run(
    system: TrainingSystem, name: str
) -> None:
    await system.submit(system.job(name, name, publish_every_steps=2))
    assert await exit_codes(system, 1, EFFECTS) == dict.fromkeys(EFFECTS, -9) | {"": 0}
    assert (await system.ended(name)).state == "succeeded"
    async with system.trainer():
        await system.submit(system.job(f"{name}-whole", f"{name}-whole", publish_every_steps=2))
        await system.ended(f"{name}-whole")
    broken, whole = await system.revisions(name), await system.revisions(f"{name}-whole")
    assert [(number, step) for number, _, step, _ in broken] == [(1, 2), (2, 4)]
    assert [digest for *_, digest in broken] == [digest for *_, digest in whole] and len(set(broken)) == 2
    assert await committed_to_the_end(system)


async def exit_codes(system: TrainingSystem, jobs: int, moments: Sequence[str]) -> dict[str, int]:
    """Of a line of trainers that die at these moments, and of the last one, which closes what is left of so many jobs; 0: no last one."""
    (system.settings.home / "closed-records").unlink(missing_ok=True)
    async with script(system, "killed_trainers.py", str(jobs), *moments) as line:
        output, _ = await line.communicate()
        assert line.returncode == 0
    codes: dict[str, int] = json.loads(output.splitlines()[-1])
    return codes


TOGETHER = 3
MOMENTS = (
    "claimed:3",
    "passed:2",
    "stepped:1",
    "passed:7",
    "stepped:5",
    "checkpoint-durable:2",
    "files-durable:2",
    "announced:3",
    "answered",
    "publish-reported:2",
    "end-reported",
    "record-closed",
)
"""Of three jobs in the same passes: at the ends of steps, within them (a step takes several passes), and at each effect of one of them.
The steps and publishes of these jobs are about twice as many as all these lives can use up."""


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_jobs_in_the_same_passes_end_in_the_bits_of_unbroken_ones_however_often_their_trainer_is_killed(
    system: TrainingSystem, name: str
) -> None:
    def job_of(number: int, suffix: str = "") -> TrainingJob:
        settings = {"steps": 16, "micro_batch_tokens": 150, "batch_size": 4 + number, "weight_decay": 0.01, "max_grad_norm": 0.5}
        lora = LoraSettings(rank=2 + number, dropout=0.1 * number)
        job_id = f"{name}-{number}{suffix}"
        return system.job(job_id, job_id, hyperparameters=settings, lora=lora, seed=number, publish_every_steps=2, checkpoint_every_steps=1)

    for number in range(TOGETHER):
        await system.submit(job_of(number))
    assert await exit_codes(system, TOGETHER, MOMENTS) == dict.fromkeys(MOMENTS, -9) | {"": 0}
    async with system.trainer(max_jobs=1):
        for number in range(TOGETHER):
            await system.submit(job_of(number, "-whole"))
            await system.ended(f"{name}-{number}-whole")
    for number in range(TOGETHER):
        broken, whole = await system.revisions(f"{name}-{number}"), await system.revisions(f"{name}-{number}-whole")
        assert [(revision, step) for revision, _, step, _ in broken] == [(n, 2 * n) for n in range(1, 9)]
        assert [digest for *_, digest in broken] == [digest for *_, digest in whole]
    assert await committed_to_the_end(system)
