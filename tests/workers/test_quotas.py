"""Tenants have what their quota says, those without one what everybody has, and without that all they want."""

from collections.abc import Callable

import pytest

from mint_stream.errors import QuotaExceeded
from mint_stream.messages.training import Hyperparameters, TrainingJob
from mint_stream.workers.quotas import Quota, Quotas

QUOTAS = Quotas({"acme": Quota(jobs=2), "banned": Quota(jobs=0), "*": Quota(jobs=1, tokens=100)})


def job(tenant: str) -> TrainingJob:
    return TrainingJob(
        job_id="j", tenant=tenant, adapter_id="a", dataset_uri="d", hyperparameters=Hyperparameters(steps=1), submitted_at_ms=1
    )


@pytest.mark.parametrize(("tenant", "allowed"), [("acme", [0, 1]), ("stranger", [0]), ("banned", [0, 1, 2])])
def test_a_tenant_may_have_as_many_jobs_as_its_quota_says_and_who_may_have_none_is_told(tenant: str, allowed: list[int]) -> None:
    assert [jobs for jobs in range(3) if QUOTAS.allows(tenant, jobs)] == allowed
    assert refused(lambda: QUOTAS.check(job(tenant))) == (tenant == "banned")


@pytest.mark.parametrize(("tenant", "tokens", "fits"), [("stranger", 100, True), ("stranger", 101, False), ("acme", 10**9, True)])
def test_a_job_may_send_as_many_tokens_as_its_tenants_quota_says(tenant: str, tokens: int, fits: bool) -> None:
    assert refused(lambda: QUOTAS.check_tokens(job(tenant), tokens)) != fits


def test_without_quotas_there_is_no_limit() -> None:
    assert Quotas().allows("anybody", 10**6) and Quotas().of("anybody") == Quota()
    assert [QUOTAS.limits(tenant) for tenant in ("acme", "banned", "stranger")] == [True] * 3
    assert not Quotas().limits("anybody") and not Quotas({"acme": Quota(tokens=5)}).limits("acme")


def refused(ask: Callable[[], None]) -> bool:
    try:
        ask()
    except QuotaExceeded:
        return True
    return False
