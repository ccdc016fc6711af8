"""Which jobs are in training on one worker, and who comes next. Pure."""

from collections import Counter
from dataclasses import dataclass

from mint_stream.errors import InvalidJob


@dataclass(frozen=True)
class Applicant:
    """A job that wants to be trained here."""

    job_id: str
    tenant: str
    state_bytes: int
    """Of its adapter, gradients and moments."""


class Seats:
    """So many jobs at once, whose states together have so many bytes.

    Law: the next job is the longest waiting one of a tenant with the fewest seats; nobody takes a seat before it, also while it waits for
    memory, so no job waits for ever.
    """

    def __init__(self, most: int, state_bytes: int) -> None:
        self._most = most
        self._state_bytes = state_bytes
        self._line: dict[str, Applicant] = {}
        self._seated: dict[str, Applicant] = {}

    @property
    def taken(self) -> int:
        """How many jobs have one."""
        return len(self._seated)

    def check(self, job: Applicant) -> None:
        """Raises InvalidJob for one that would not fit into an empty worker."""
        if self._never_fits(job):
            raise InvalidJob(
                f"job {job.job_id}: its adapter and optimizer take {job.state_bytes} bytes, this trainer has {self._state_bytes}: "
                "lower the rank, name fewer target_modules, or raise MINT_TRAINING__STATE_BYTES"
            )

    def take(self, job: Applicant) -> bool:
        """Sit down if it is the job's turn and there is room; otherwise it stands in line. Who never fits is let through to be told."""
        if self._never_fits(job) or job.job_id in self._seated:
            return True
        self._line.setdefault(job.job_id, job)
        if not self._fits(job) or self._next() != job.job_id:
            return False
        self._seated[job.job_id] = self._line.pop(job.job_id)
        return True

    def leave(self, job_id: str) -> bool:
        """Give up the seat, or the place in the line; whether it had either."""
        seat, place = self._seated.pop(job_id, None), self._line.pop(job_id, None)
        return seat is not None or place is not None

    def _never_fits(self, job: Applicant) -> bool:
        return job.state_bytes > self._state_bytes

    def _next(self) -> str:
        """Of jobs whose tenants have equally few seats, the one that waited longest."""
        seats = Counter(job.tenant for job in self._seated.values())
        return min(self._line.values(), key=lambda job: seats[job.tenant]).job_id

    def _fits(self, job: Applicant) -> bool:
        used = sum(seated.state_bytes for seated in self._seated.values())
        return len(self._seated) < self._most and used + job.state_bytes <= self._state_bytes
