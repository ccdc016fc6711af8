"""What a tenant may ask of the trainers. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from mint_stream.errors import QuotaExceeded
from mint_stream.messages.training import TrainingJob

EVERYBODY = "*"


@dataclass(frozen=True)
class Quota:
    """Jobs in training at once, and tokens that one job sends through the base; None is no limit."""

    jobs: int | None = None
    tokens: int | None = None


class Quotas:
    """By tenant; those that are not named have that of EVERYBODY, if there is one. What may fit later waits, what never will is refused."""

    def __init__(self, by_tenant: Mapping[str, Quota] | None = None) -> None:
        self._by_tenant = dict(by_tenant or {})

    def of(self, tenant: str) -> Quota:
        """A tenant's quota."""
        return self._by_tenant.get(tenant) or self._by_tenant.get(EVERYBODY) or Quota()

    def limits(self, tenant: str) -> bool:
        """Whether a tenant may not have as many jobs in training as it wants."""
        return self.of(tenant).jobs is not None

    def allows(self, tenant: str, jobs: int) -> bool:
        """Whether one more job may be trained beside so many. Who may have none at all is let through, to be told."""
        most = self.of(tenant).jobs
        return not most or jobs < most

    def check(self, job: TrainingJob) -> None:
        """Raises QuotaExceeded for a job whose turn never comes."""
        if self.of(job.tenant).jobs == 0:
            raise QuotaExceeded(f"job {job.job_id}: tenant {job.tenant} may have no jobs in training: raise MINT_TRAINING__QUOTAS")

    def check_tokens(self, job: TrainingJob, tokens: int) -> None:
        """Raises QuotaExceeded for a job that would send more `tokens` through the base than it may."""
        most = self.of(job.tenant).tokens
        if most is not None and tokens > most:
            raise QuotaExceeded(
                f"job {job.job_id}: its steps send {tokens} tokens through the base, a job of tenant {job.tenant} may send {most}: "
                "fewer steps or smaller batches, or raise MINT_TRAINING__QUOTAS"
            )
