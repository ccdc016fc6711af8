"""Publishing a step of a job as a revision.

    checkpoint and files durable ─► announce acked ─► answered by the registrar ─► reported

The registrar knows a step by (job, step), so whoever repeats a publish after a crash is answered with the first one's revision. The
command_id has the attempt too: the refusal of an older attempt is never taken for the answer to a newer one.
"""

import asyncio
import logging

from mint_stream.messages.adapters import Announce, Manifest
from mint_stream.messages.lineage import Lineage
from mint_stream.messages.training import TrainingJob
from mint_stream.trainer.workshop import Work
from mint_stream.workers.claiming import Claims
from mint_stream.workers.clock import now_ms
from mint_stream.workers.commands import Commands
from mint_stream.workers.effects import After
from mint_stream.workers.job_report import JobReport
from mint_stream.workers.torch_thread import Pause
from mint_stream.workers.training_parts import TrainingRoom

log = logging.getLogger(__name__)


class Publishing:
    """Makes checkpoints durable, and revisions of what they hold."""

    def __init__(self, commands: Commands, claims: Claims, room: TrainingRoom, pool: str, after: After) -> None:
        self._commands = commands
        self._claims = claims
        self._workshop = room.workshop
        self._shop = room.shop
        self._pool = pool
        self.after = after

    async def save(self, work: Work, report: JobReport, pause: Pause) -> None:
        """Make the job's checkpoint durable."""
        await self._shop.patiently(pause, self._workshop.save, work, report.attempt)
        self.after("checkpoint-durable")

    async def publish(self, work: Work, report: JobReport, pause: Pause, saved: bool) -> int | None:
        """The number of the step's revision. A checkpoint that is not `saved` yet is made durable beside the files.

        Raises CommandRejected or OwnershipLost when the registrar refuses the revision."""
        job, step = work.run.job, work.run.step
        manifest = await (self._upload(work, pause) if saved else self._save_and_upload(work, report, pause))
        sent = await self._commands.send(self._command(job, step, report.attempt, manifest, self._workshop.lineage(work)))
        self.after("announced")
        answer = await sent.answer()
        self.after("answered")
        self._claims.check_answer(job, report.attempt, answer)
        number: int | None = getattr(answer, "number", None)
        await report.say("publishing", number=number)
        self.after("publish-reported")
        log.info("published job_id=%s step=%d as %s@%s", job.job_id, step, job.adapter_id, number)
        return number

    async def _upload(self, work: Work, pause: Pause) -> Manifest:
        manifest = await self._shop.patiently(pause, self._workshop.upload, work)
        self.after("files-durable")
        return manifest

    async def _save_and_upload(self, work: Work, report: JobReport, pause: Pause) -> Manifest:
        """Both at once, for neither needs the other; nothing is announced before both are durable."""
        uploading = asyncio.create_task(self._upload(work, pause))
        try:
            await self.save(work, report, pause)
        finally:
            await asyncio.wait({uploading})
        return uploading.result()

    def _command(self, job: TrainingJob, step: int, attempt: int, manifest: Manifest, lineage: Lineage) -> Announce:
        return Announce(
            command_id=f"announce/{job.job_id}/{step}/{attempt}",
            adapter_id=job.adapter_id,
            issued_at_ms=now_ms(),
            pool=self._pool,
            manifest=manifest,
            parent=job.parent,
            job_id=job.job_id,
            attempt=attempt,
            step=step,
            lineage=lineage,
            promotion=job.promotion,
        )


def publish_due(job: TrainingJob, step: int) -> bool:
    """After every `publish_every_steps`, and after the last step."""
    every = job.publish_every_steps
    return step == job.hyperparameters.steps or (every is not None and step % every == 0)


def checkpoint_due(job: TrainingJob, step: int) -> bool:
    """After every `checkpoint_every_steps`, and before every publish: nothing is announced that its job could not go on from."""
    return step % job.checkpoint_every_steps == 0 or publish_due(job, step)
