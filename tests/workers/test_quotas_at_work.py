"""Quotas on a real broker: a tenant's jobs wait for each other wherever they are trained, and what can never be is refused."""

import uuid
from collections.abc import AsyncIterator

import pytest

from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.settings import TenantQuota
from tests.training_system import PARTITIONS, TrainingSystem

pytestmark = [pytest.mark.kafka]

ONE_JOB = {"acme": TenantQuota(jobs=1)}
ENDLESS = {"hyperparameters": {"steps": 1_000_000}, "tenant": "acme"}


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TrainingSystem]:
    async with TrainingSystem(tmp_path_factory.mktemp("quotas")) as system:
        yield system


@pytest.fixture
def name() -> str:
    """A job_id and adapter_id no other test uses."""
    return f"n{uuid.uuid4().hex[:10]}"


async def waits(system: TrainingSystem, job_id: str) -> None:
    await system.heard(job_id, lambda event: event.state == "queued" and "tenant acme has as many jobs" in (event.reason or ""))


async def test_a_tenant_over_its_quota_waits_and_is_told_and_others_have_the_seats(system: TrainingSystem, name: str) -> None:
    async with system.trainer(quotas=ONE_JOB):
        await system.submit(system.job(f"{name}-1", f"{name}-1", **ENDLESS))
        await system.heard(f"{name}-1", lambda event: event.step > 0)
        await system.submit(system.job(f"{name}-2", f"{name}-2", tenant="acme"))
        await waits(system, f"{name}-2")
        await system.submit(system.job(f"{name}-other", f"{name}-other", tenant="else"))
        assert (await system.ended(f"{name}-other")).state == "succeeded"
        assert system.states(f"{name}-2") == ["queued"]
        await system.control(f"{name}-1", "pause")
        assert (await system.ended(f"{name}-2")).state == "succeeded", "a paused job counts for nothing"
        await system.cancel(f"{name}-1")
        await system.ended(f"{name}-1")


async def test_a_quota_counts_what_other_trainers_have_in_training(system: TrainingSystem, name: str) -> None:
    """Each trainer owns one of the two partitions; the tenant has a job for each."""
    first, second = (next(one for n in range(99) if murmur2_partition((one := f"{name}{n}").encode(), PARTITIONS) == p) for p in (0, 1))
    async with system.trainer(worker_id="q-1", quotas=ONE_JOB) as one, system.trainer(worker_id="q-2", quotas=ONE_JOB) as other:
        for role in (one, other):
            assert role._worker is not None
            await role._worker._intake.until(lambda role=role: len(role._worker._intake.assigned) == 1)
        await system.submit(system.job(first, first, **ENDLESS))
        running = await system.heard(first, lambda event: event.step > 0)
        await system.submit(system.job(second, second, tenant="acme"))
        await waits(system, second)
        assert system.states(second) == ["queued"]
        await system.cancel(first)
        ended = await system.ended(second)
    assert ended.state == "succeeded" and ended.worker_id != running.worker_id


async def test_what_a_quota_never_allows_is_rejected_by_name(system: TrainingSystem, name: str) -> None:
    quotas = {"banned": TenantQuota(jobs=0), "*": TenantQuota(tokens=1000)}
    async with system.trainer(quotas=quotas):
        await system.submit(system.job(f"{name}-banned", f"{name}-banned", tenant="banned"))
        await system.submit(system.job(f"{name}-large", f"{name}-large", hyperparameters={"steps": 1000}))
        await system.submit(system.job(f"{name}-small", f"{name}-small", hyperparameters={"steps": 1}))
        ends = {which: await system.ended(f"{name}-{which}") for which in ("banned", "large", "small")}
    assert [end.state for end in ends.values()] == ["rejected", "rejected", "succeeded"]
    assert {end.error.code for end in ends.values() if end.error} == {"quota-exceeded"}
    assert "claimed" not in system.states(f"{name}-large")
