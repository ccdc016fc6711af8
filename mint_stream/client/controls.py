"""Whether a job may be paused or resumed. Pure."""

from dataclasses import dataclass

from mint_stream.errors import ControlRefused, UnknownJob
from mint_stream.messages.training import TERMINAL, Action, JobState


@dataclass(frozen=True)
class JobNow:
    """The last state a trainer told, and the control that counts; trainers may not have acted upon it yet."""

    state: JobState
    asked: Action | None = None

    @property
    def paused(self) -> bool:
        """Whether it is paused, or will be. Events are kept for longer than controls: a pause outlives its control."""
        return self.asked == "pause" or (self.state == "paused" and self.asked is None)


def check_control(job_id: str, action: Action, job: JobNow | None) -> None:
    """Raises UnknownJob, or ControlRefused when the job has ended, was cancelled, or is already as it is asked to be."""
    if job is None:
        raise UnknownJob(
            f"no job {job_id}: `mint-stream jobs list` says which there are; one is looked for in its own --pool until it runs"
        )
    if job.state in TERMINAL:
        raise ControlRefused(f"job {job_id} cannot be {action}d: it has ended, {job.state}")
    if job.asked == "cancel":
        raise ControlRefused(f"job {job_id} cannot be {action}d: it was cancelled")
    if (action == "pause") == job.paused:
        raise ControlRefused(
            f"job {job_id} cannot be {action}d: it is {'already paused' if job.paused else f'not paused, it is {job.state}'}"
        )
