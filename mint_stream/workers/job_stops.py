"""What may stop a job between two steps: somebody cancels or pauses it, its claim is another worker's, this one is told to stop."""

from mint_stream.errors import Cancelled
from mint_stream.messages.training import PARKED_BYTES, TrainingJob
from mint_stream.workers.claiming import Claims
from mint_stream.workers.job_log import JobLog
from mint_stream.workers.job_report import JobReport


class Released(Exception):
    """This worker was told to stop; the job is free for another one."""


class Paused(Exception):
    """Somebody paused the job, and its checkpoint is durable."""


class JobStops:
    """Looked at wherever a job waits, and before each of its steps."""

    def __init__(self, log: JobLog, claims: Claims) -> None:
        self._log = log
        self._claims = claims
        self.stopping = False

    def stop(self) -> None:
        """This worker is told to stop."""
        self.stopping = True

    def check(self, job: TrainingJob, report: JobReport) -> None:
        """Raises OwnershipLost, Cancelled or Released."""
        if report.claimed:
            self._claims.check(job, report.attempt)  # first: who has lost the job says nothing of its end
        self.check_cancelled(job)
        self.check_stopping(job)

    def check_cancelled(self, job: TrainingJob) -> None:
        """Raises Cancelled."""
        reason = self._log.cancelled(job.job_id)
        if reason is not None:
            raise Cancelled(f"job {job.job_id} was cancelled: {reason}")

    def check_stopping(self, job: TrainingJob) -> None:
        """Raises Released."""
        if self.stopping:
            raise Released(job.job_id)

    def paused(self, job: TrainingJob) -> str | None:
        """Why the job is to pause; None where it is not, or could not be put into its topic again."""
        why = self._log.pausing(job.job_id)
        return why if why is None or len(job.encode()) <= PARKED_BYTES else None

    def wishes(self, job: TrainingJob) -> tuple[str | None, str | None]:
        """Why the job is to be cancelled, and why it is to pause. Who waits because of one of them goes on when they are others."""
        return self._log.cancelled(job.job_id), self.paused(job)

    def interrupted(self, job: TrainingJob) -> bool:
        """Whether a job that only waits for a seat has to be looked at again."""
        return self.wishes(job) != (None, None)
