"""Which jobs are in training on one worker, and who comes next. Pure."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from mint_stream.errors import InvalidJob

OVERTAKEN = 8
"""So many later jobs may sit down before one that waits, for their priority alone."""


Allowed = Callable[[str, int], bool]
"""Whether a tenant that has so many seats here may have one more."""


@dataclass(frozen=True)
class Applicant:
    """A job that wants to be trained here."""

    job_id: str
    tenant: str
    state_bytes: int
    """Of its adapter, gradients and moments."""
    priority: int = 0


def anybody(_tenant: str, _seats: int) -> bool:
    """There are no quotas."""
    return True


class Seats:
    """So many jobs at once, whose states together have so many bytes.

    Law: the next job is one of a tenant with the fewest seats, of these the one of the highest priority, of these the one that waited
    longest; nobody takes a seat before it, also while it waits for memory. Whoever OVERTAKEN later jobs of higher priority went past is
    of the highest priority from then on, so no job waits for ever. Jobs whose tenant is not allowed more hold nobody up.
    """

    def __init__(self, most: int, state_bytes: int) -> None:
        self._most = most
        self._state_bytes = state_bytes
        self._line: dict[str, Applicant] = {}
        self._seated: dict[str, Applicant] = {}
        self._overtaken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many jobs have one."""
        return len(self._seated)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._seated

    def check(self, job: Applicant) -> None:
        """Raises InvalidJob for one that would not fit into an empty worker."""
        if self._never_fits(job):
            raise InvalidJob(
                f"job {job.job_id}: its adapter and optimizer take {job.state_bytes} bytes, this trainer has {self._state_bytes}: "
                "lower the rank, name fewer target_modules, or raise MINT_TRAINING__STATE_BYTES"
            )

    def take(self, job: Applicant, allowed: Allowed = anybody) -> bool:
        """Sit down if it is the job's turn and there is room; otherwise it stands in line. Who never fits is let through to be told."""
        if self._never_fits(job) or job.job_id in self._seated:
            return True
        self._line.setdefault(job.job_id, job)
        if not self._fits(job) or self._next(allowed) != job.job_id:
            return False
        self._overtake(job)
        self._seated[job.job_id] = self._line.pop(job.job_id)
        return True

    def leave(self, job_id: str) -> bool:
        """Give up the seat, or the place in the line; whether it had either."""
        seat, place = self._seated.pop(job_id, None), self._line.pop(job_id, None)
        self._overtaken.pop(job_id, None)
        return seat is not None or place is not None

    def lacks(self, job: Applicant, allowed: Allowed = anybody) -> str:
        """Why a job stands in line, in words that are the same while nothing changes."""
        if not allowed(job.tenant, self._held()[job.tenant]):
            return f"tenant {job.tenant} has as many jobs in training as its quota allows"
        if len(self._seated) >= self._most:
            return f"all {self._most} seats of the trainer are taken"
        return "others come before it" if self._fits(job) else "its adapter and optimizer do not fit beside the others' yet"

    def _held(self) -> Counter[str]:
        return Counter(job.tenant for job in self._seated.values())

    def _never_fits(self, job: Applicant) -> bool:
        return job.state_bytes > self._state_bytes

    def _next(self, allowed: Allowed) -> str | None:
        """Of jobs whose tenants have equally few seats, the most urgent one; of equals the one that waited longest."""
        seats = self._held()
        may = {tenant for tenant in {job.tenant for job in self._line.values()} if allowed(tenant, seats[tenant])}
        candidates = (job for job in self._line.values() if job.tenant in may)
        chosen = min(candidates, key=lambda job: (seats[job.tenant], -self._urgency(job)), default=None)
        return chosen.job_id if chosen else None

    def _urgency(self, job: Applicant) -> float:
        return job.priority if self._overtaken[job.job_id] < OVERTAKEN else math.inf

    def _overtake(self, job: Applicant) -> None:
        """The job sits down; those that came before it, and stand back for nothing but their lower priority, remember it."""
        held = self._held()
        earlier = takewhile(lambda other: other.job_id != job.job_id, self._line.values())
        rivals = (other for other in earlier if held[other.tenant] == held[job.tenant])
        self._overtaken.update(other.job_id for other in rivals if other.priority < job.priority)

    def _fits(self, job: Applicant) -> bool:
        used = sum(seated.state_bytes for seated in self._seated.values())
        return len(self._seated) < self._most and used + job.state_bytes <= self._state_bytes
