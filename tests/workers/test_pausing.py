"""Jobs that are paused and resumed, on a real broker with a real registrar: nothing wakes them, nothing is lost, nothing waits for them."""

import uuid
from collections.abc import AsyncIterator

import pytest

from mint_stream.messages.training import TrainingEvent
from tests.training_system import TrainingSystem
from tests.workers.test_training import committed_to_the_end, exit_codes

pytestmark = [pytest.mark.kafka]


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TrainingSystem]:
    async with TrainingSystem(tmp_path_factory.mktemp("pausing")) as system:
        yield system


@pytest.fixture
def name() -> str:
    """A job_id and adapter_id no other test uses."""
    return f"n{uuid.uuid4().hex[:10]}"


def paused(event: TrainingEvent) -> bool:
    return event.state == "paused"


async def digest(system: TrainingSystem, adapter_id: str) -> str:
    """Of its only revision."""
    [(_, _, _, found)] = await system.revisions(adapter_id)
    return found


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_a_paused_job_gives_its_seat_back_and_resumes_in_the_bits_of_an_unbroken_one(system: TrainingSystem, name: str) -> None:
    settings = {"steps": 120, "weight_decay": 0.1}
    async with system.trainer(max_jobs=1) as role:
        await system.submit(system.job(name, name, hyperparameters=settings, checkpoint_every_steps=1000))
        await system.heard(name, lambda event: event.step > 0)
        await system.control(name, "pause")
        parked = await system.heard(name, paused)
        assert (parked.reason, parked.parked and parked.parked.job.job_id) == ("paused by ann: enough", name) and 0 < parked.step < 120
        await system.submit(system.job(f"{name}-whole", f"{name}-whole", hyperparameters=settings))
        assert (await system.ended(f"{name}-whole")).state == "succeeded", "it has the only seat"
        assert role.status("ready").running == role.status("ready").waiting == 0
        await system.control(name, "resume")
        assert (await system.ended(name)).state == "succeeded"
    resumed = await system.heard(name, lambda event: event.resumed is not None)
    assert (resumed.resumed, resumed.step, resumed.attempt) == ("exact", parked.step, 2)
    assert await digest(system, name) == await digest(system, f"{name}-whole")
    states = system.states(name)
    assert states[states.index("paused") :][:4] == ["paused", "queued", "claimed", "running"]


async def test_a_paused_job_holds_up_neither_its_partition_nor_its_adapter(system: TrainingSystem, name: str) -> None:
    async with system.trainer():
        await system.submit(system.job(name, name, hyperparameters={"steps": 1_000_000}))
        await system.submit(system.job(f"{name}-next", name))
        await system.heard(name, lambda event: event.step > 0)
        await system.control(name, "pause")
        assert (await system.ended(f"{name}-next")).state == "succeeded"
        await system.submit(system.job(name, name, hyperparameters={"steps": 1_000_000}))  # the same again starts nothing
        await system.submit(system.job(f"{name}-third", name, hyperparameters={"steps": 1}))
        assert (await system.ended(f"{name}-third")).state == "succeeded"
    assert await committed_to_the_end(system)
    async with system.trainer(worker_id="another"):
        await system.cancel(name)
        assert (await system.ended(name)).state == "cancelled", "and can be cancelled where it stands"
    assert "running" not in system.states(name)[system.states(name).index("paused") :]
    assert await committed_to_the_end(system)


async def test_a_job_paused_before_any_trainer_had_it_never_starts_until_it_is_resumed(system: TrainingSystem, name: str) -> None:
    await system.submit(system.job(name, name))
    await system.control(name, "pause")
    async with system.trainer():
        assert (await system.heard(name, paused)).attempt == 0
        assert "claimed" not in system.states(name)
        await system.control(name, "resume")
        assert (await system.ended(name)).state == "succeeded"


async def test_a_job_that_waits_for_a_seat_pauses_at_once(system: TrainingSystem, name: str) -> None:
    async with system.trainer(max_jobs=1):
        await system.submit(system.job(f"{name}-long", f"{name}-long", hyperparameters={"steps": 1_000_000}))
        await system.heard(f"{name}-long", lambda event: event.step > 0)
        await system.submit(system.job(name, name))
        await system.heard(name, lambda event: event.state == "queued")
        await system.control(name, "pause")
        await system.heard(name, paused)
        await system.cancel(f"{name}-long")
        await system.ended(f"{name}-long")
        await system.cancel(name)
        await system.ended(name)


async def test_a_resume_and_a_pause_count_as_they_were_asked_last(system: TrainingSystem, name: str) -> None:
    for action in ("pause", "resume", "pause", "resume"):
        await system.control(name, action)
    async with system.trainer():
        await system.submit(system.job(name, name, hyperparameters={"steps": 20}))
        assert (await system.ended(name)).state == "succeeded"
    assert "paused" not in system.states(name)


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_job_whose_trainers_are_killed_on_its_way_into_a_pause_and_out_again_loses_at_most_what_no_checkpoint_has(
    system: TrainingSystem, name: str
) -> None:
    """The pause is asked for before the first trainer starts and stays while they die: in the pause's event, and idle after it."""
    settings = {"steps": 6, "weight_decay": 0.1}
    await system.submit(system.job(name, name, hyperparameters=settings, checkpoint_every_steps=1))
    assert await exit_codes(system, 0, ("checkpoint-durable:3",)) == {"checkpoint-durable:3": -9}
    await system.control(name, "pause")
    assert await exit_codes(system, 0, ("pause-reported",)) == {"pause-reported": -9}
    parked = await system.heard(name, paused)
    assert (parked.step, parked.attempt) == (3, 2), "what the last checkpoint has, and the killed trainer could write nothing more"
    assert await exit_codes(system, 0, ("record-closed",)) == {"record-closed": -9}
    async with system.trainer(worker_id="bystander"):
        await system.submit(system.job(f"{name}-whole", f"{name}-whole", hyperparameters=settings))
        await system.ended(f"{name}-whole")
        assert system.states(name)[-1] == "paused", "nothing wakes it but a resume"
        await system.control(name, "resume")
        await system.ended(name)
    assert await digest(system, name) == await digest(system, f"{name}-whole")
    assert await committed_to_the_end(system)


async def test_a_resume_that_nobody_saw_is_acted_upon_by_the_next_trainer(system: TrainingSystem, name: str) -> None:
    await system.submit(system.job(name, name))
    await system.control(name, "pause")
    async with system.trainer():
        await system.heard(name, paused)
    await system.control(name, "resume")
    async with system.trainer(worker_id="another"):
        assert (await system.ended(name)).worker_id == "another"
    assert len(await system.revisions(name)) == 1
