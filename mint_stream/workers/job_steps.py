"""The steps of a job under its claim, from its last checkpoint on: rollouts, passes, progress, checkpoints, revisions."""

import time

from mint_stream.messages.training import RolloutFigures, TrainingJob
from mint_stream.metrics import Metrics
from mint_stream.trainer.run import StepReport
from mint_stream.trainer.workshop import Work
from mint_stream.workers.job_report import JobReport, Progress
from mint_stream.workers.job_stops import JobStops, Paused
from mint_stream.workers.publishing import Publishing, checkpoint_due, publish_due
from mint_stream.workers.torch_thread import Pause, attended
from mint_stream.workers.training_parts import TrainingBus, TrainingRoom, TrainingTerms


class JobSteps:
    """Makes the steps of any job that this worker has claimed."""

    def __init__(
        self, bus: TrainingBus, room: TrainingRoom, terms: TrainingTerms, stops: JobStops, publishing: Publishing, metrics: Metrics
    ) -> None:
        self._log = bus.log
        self._rollouts = bus.rollouts
        self._workshop = room.workshop
        self._shop = room.shop
        self._passes = room.passes
        self._terms = terms
        self._stops = stops
        self._publishing = publishing
        self._metrics = metrics

    async def all_of(self, work: Work, report: JobReport) -> int | None:
        """Resume, then make all remaining steps. Gives the number of the last revision.

        Raises Paused, Released, and whatever ends the job."""
        resumed = await self._resumed(work, report)
        try:
            return await self._steps(resumed, report)
        finally:
            await self._passes.leave(resumed.run)

    async def _resumed(self, work: Work, report: JobReport) -> Work:
        found = await self._shop.patiently(self._pausing(work.run.job, report), self._workshop.resume, work)
        report.step = found.run.step
        await report.say("running", resumed=found.resumed)
        return found

    def _pausing(self, job: TrainingJob, report: JobReport, between_steps: Work | None = None) -> Pause:
        """How a job that has its claim waits: its heart beats on, and whatever else may end it does; a pause only between steps."""

        async def pause(wait_s: float) -> None:
            until_s = time.monotonic() + wait_s
            while (left_s := until_s - time.monotonic()) > 0:
                self._stops.check(job, report)
                if between_steps is not None:
                    await self._check_paused(between_steps, report, self._pausing(job, report))
                await self._log.moved(min(self._terms.heartbeat_s, left_s))

        return pause

    async def _steps(self, work: Work, report: JobReport) -> int | None:
        run, job = work.run, work.run.job
        pause = self._pausing(job, report)
        progress = Progress(job.hyperparameters.steps, self._terms.progress_s if job.rollouts is None else 0.0)
        number = await self._publishing.publish(work, report, pause, saved=True) if run.step and publish_due(job, run.step) else None
        async with self._rollouts.of(run) as experience:
            while not run.done:
                self._stops.check(job, report)
                await self._check_paused(work, report, pause)
                figures = await attended(experience.begin(), self._pausing(job, report, work)) if experience else None
                made = await self._passes.step(run)
                self._publishing.after("stepped")
                report.step = run.step
                self._count(work, made, figures)
                if told := progress.add(made):
                    await report.mention("running", **told, rollouts=figures)
                if publish_due(job, run.step):
                    number = await self._publishing.publish(work, report, pause, saved=False)
                elif checkpoint_due(job, run.step):
                    await self._publishing.save(work, report, pause)
        return number

    async def _check_paused(self, work: Work, report: JobReport, pause: Pause) -> None:
        """Between two steps: raises Paused when somebody asked for it and the job's state is durable."""
        if why := self._stops.paused(work.run.job):
            if work.run.step and (work.checkpoint is None or work.checkpoint.step != work.run.step):
                await self._publishing.save(work, report, pause)
            self._stops.check(work.run.job, report)
            raise Paused(why)

    def _count(self, work: Work, made: StepReport, figures: RolloutFigures | None) -> None:
        work.made(made)
        if figures is not None:
            work.metrics["reward"] = figures.reward
        self._metrics.training_steps_total.inc()
        self._metrics.training_tokens_total.inc(made.tokens)
