"""The life of a training job on one worker, from its record to its terminal event.

    look at the log ─► over: done · held elsewhere: watch · free: a seat ─► validate ─► claim ─► resume ─► steps ─► terminal event
    every few steps: checkpoint durable ─► publish (see publishing.py)
    asked to pause: checkpoint durable ─► paused event, and the record is over (see parking.py)

Each arrow may be the last thing this process does. Whoever comes next finds the job free after a silence, claims the next attempt, goes on
from the last checkpoint, and repeats a publish that was due there, for nobody knows how far it came.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mint_stream import contracts
from mint_stream.bus.producer import Producer
from mint_stream.catalog import Catalog
from mint_stream.errors import (
    BusUnavailable,
    Cancelled,
    CorruptObject,
    DeviceLost,
    EngineFailed,
    MintError,
    NoRollouts,
    OwnershipLost,
    Reject,
    RevisionQuarantined,
    RevisionRetired,
    StoreUnavailable,
    UnknownRevision,
)
from mint_stream.messages.adapters import Revision
from mint_stream.messages.training import PARKED_BYTES, TERMINAL, JobState, ParkedJob, RolloutFigures, TrainingJob
from mint_stream.metrics import Metrics
from mint_stream.trainer.run import StepReport
from mint_stream.trainer.workshop import Work, Workshop
from mint_stream.workers.claiming import Claims
from mint_stream.workers.clock import now_ms
from mint_stream.workers.commands import Commands
from mint_stream.workers.job_log import JobLog, LastSeen, Standing, standing
from mint_stream.workers.job_report import JobReport, Progress, obituary
from mint_stream.workers.pass_loop import PassLoop
from mint_stream.workers.publishing import After, Publishing, checkpoint_due, publish_due
from mint_stream.workers.quotas import Quotas
from mint_stream.workers.rollouts import Rollouts
from mint_stream.workers.seats import Applicant, Seats
from mint_stream.workers.torch_thread import Pause, TorchThread, attended

log = logging.getLogger(__name__)


class Released(Exception):
    """This worker was told to stop; the job is free for another one."""


class Paused(Exception):
    """Somebody paused the job, and its checkpoint is durable."""


@dataclass(frozen=True)
class TrainingTerms:
    """Who trains, and how often it says so."""

    worker_id: str
    pool: str
    heartbeat_s: float = 2.0
    silence_s: float = 15.0
    progress_s: float = 1.0
    store_wait_s: float = 5.0
    """How long a job that has not begun leaves a store alone that did not answer."""
    quotas: Quotas = field(default_factory=Quotas)


@dataclass(frozen=True)
class TrainingBus:
    """What the life of a job needs of Kafka."""

    producer: Producer
    commands: Commands
    log: JobLog
    catalog: Catalog
    catalog_current: Callable[[], Awaitable[None]]
    """Waits until the catalog has everything that was announced before."""
    rollouts: Rollouts


@dataclass(frozen=True)
class TrainingRoom:
    """Where jobs are worked on: between their steps each by itself on the shop's threads, in passes together."""

    workshop: Workshop
    shop: TorchThread
    passes: PassLoop
    seats: Seats


class JobRunner:
    """Runs as many jobs at once as have seats, and watches those that another worker runs."""

    def __init__(self, bus: TrainingBus, room: TrainingRoom, terms: TrainingTerms, metrics: Metrics, after: After) -> None:
        self._bus = bus
        self._workshop = room.workshop
        self._shop = room.shop
        self._passes = room.passes
        self._seats = room.seats
        self._terms = terms
        self._metrics = metrics
        self._after = after
        self._claims = Claims(bus.commands, bus.catalog, terms.pool)
        self._publishing = Publishing(bus.commands, self._claims, room.workshop, room.shop, terms.pool, after)
        self._stopping = False

    def stop(self) -> None:
        """Let go of every job after its step; nothing new begins."""
        self._stopping = True
        self._bus.commands.abandon()
        self._bus.log.wake()

    async def run(self, job: TrainingJob) -> None:
        """Return when the job is terminal or paused, here or elsewhere. Raises Released when this worker stops first."""
        last = await self._bus.log.current(job.job_id)
        if last is None or (last.state == "paused" and not self._bus.log.parked(job.job_id)):
            await self._report(job, last).say("queued")
        try:
            await self._until_terminal(job, await self._applicant(job))
        finally:
            self._give_up_seat(job)

    async def _until_terminal(self, job: TrainingJob, applicant: Applicant) -> None:
        while (found := await self._standing(job)) != "over":
            self._check_stopping(job)
            if found == "held":
                self._give_up_seat(job)
                await self._bus.log.moved(self._terms.heartbeat_s)
            elif (self._paused(job) or await self._seat(job, applicant)) and await self._attempt(job, applicant):
                return

    async def bury(self, value: bytes | None, error: MintError, state: JobState) -> None:
        """Say that a record is not worked on, if it names a job that has not begun (`rejected`) or not ended (`failed`)."""
        event = obituary(value, error, self._terms.worker_id, state)
        if event is None:
            return
        last = await self._bus.log.current(event.job_id)
        if last is None or (state == "failed" and last.state not in TERMINAL):
            final = event.model_copy(update={"attempt": last.attempt if last else 0})
            await self._bus.producer.publish(contracts.TRAINING_EVENTS, final, final.job_id)

    async def _standing(self, job: TrainingJob) -> Standing:
        last = await self._bus.log.current(job.job_id)
        if self._bus.log.parked(job.job_id):
            return "over"  # for this record: whoever resumes the job writes another one
        return standing(last, self._terms.worker_id, now_ms(), self._terms.silence_s * 1000)

    async def _seat(self, job: TrainingJob, applicant: Applicant) -> bool:
        """A seat for the job. False when it had to wait: look again first, for it may be cancelled, over or another trainer's by now."""
        waited = False
        told: set[str] = set()
        while not (self._stopping or self._interrupted(job) or self._seats.take(applicant, self._within_quota)):
            waited = True
            if (why := self._seats.lacks(applicant, self._within_quota)) not in told:
                told.add(why)
                await self._say_waiting(job, why)
            else:
                await self._bus.log.moved(self._terms.heartbeat_s)
        self._bus.log.wake()  # for whoever is next in line now
        return not waited

    def _within_quota(self, tenant: str, seats: int) -> bool:
        """What other trainers say they have in training counts; two that begin at the same moment do not see each other."""
        if not self._terms.quotas.limits(tenant):
            return True
        elsewhere = self._bus.log.at_work_elsewhere(tenant, self._terms.worker_id, now_ms(), self._terms.silence_s * 1000)
        return self._terms.quotas.allows(tenant, seats + elsewhere)

    async def _say_waiting(self, job: TrainingJob, why: str) -> None:
        if await self._standing(job) == "free":
            await self._report(job, await self._bus.log.current(job.job_id)).say("queued", reason=why)

    async def _applicant(self, job: TrainingJob) -> Applicant:
        if job.parent is not None:
            await self._bus.catalog_current()
        parent = None if job.parent is None else self._bus.catalog.revision(job.adapter_id, job.parent)
        return Applicant(job.job_id, job.tenant, self._workshop.state_bytes(job, parent), job.priority)

    def _give_up_seat(self, job: TrainingJob) -> None:
        if self._seats.leave(job.job_id):  # two that are only watched would wake each other for ever
            self._bus.log.wake()

    async def _wait_for_store(self, job: TrainingJob) -> None:
        until_s = time.monotonic() + self._terms.store_wait_s
        while time.monotonic() < until_s and not self._stopping and not self._interrupted(job):
            await self._bus.log.moved(min(self._terms.heartbeat_s, self._terms.store_wait_s))

    async def _attempt(self, job: TrainingJob, applicant: Applicant) -> bool:
        """Work on a free job. True when it is terminal or paused now, False when somebody else has it."""
        last = await self._bus.log.current(job.job_id)
        report = self._report(job, last)
        try:
            self._check_cancelled(job)
            self._terms.quotas.check(job)
            if why := self._paused(job):
                return await self._park(job, report, last, why)
            self._seats.check(applicant)
            return await self._seated(job, report)
        except OwnershipLost as error:
            log.info("%s; watching it", error)
            self._give_up_seat(job)
            await self._bus.log.moved(self._terms.heartbeat_s)
            return False
        except StoreUnavailable as error:  # before the claim: the seat is free for others meanwhile
            log.warning("job_id=%s waits for the store: %s", job.job_id, error)
            self._give_up_seat(job)
            await self._wait_for_store(job)
            return False
        except (Reject, EngineFailed, NoRollouts) as error:
            if isinstance(error, EngineFailed):
                await self._prove(report)
            await self._end(report, error)
            return True
        except BusUnavailable:
            self._check_stopping(job)
            raise

    async def _seated(self, job: TrainingJob, report: JobReport) -> bool:
        """Validate wholly, claim, then train under the attempt granted, with heartbeats."""
        self._check_stopping(job)
        work = await self._shop.run(self._workshop.prepare, job, await self._parent(job))
        self._terms.quotas.check_tokens(job, work.run.planned_tokens)
        await self._bus.rollouts.check(work.run)
        self._check(job, report)
        report.attempt = await self._claims.take(job)
        await report.say("claimed")
        self._after("claimed")
        try:
            async with report.beating(self._terms.heartbeat_s):
                number = await self._train(await self._resumed(work, report), report)
        except Paused as paused:
            return await self._say_paused(job, report, str(paused))
        except (Released, BusUnavailable):
            if self._stopping:
                await report.say("queued")
            raise
        await self._say_evaluating(job, report, number)
        await report.say("succeeded", number=number)
        self._after("end-reported")
        self._metrics.jobs_total.labels("succeeded").inc()
        return True

    async def _park(self, job: TrainingJob, report: JobReport, last: LastSeen | None, why: str) -> bool:
        """Pause a job that is not in training: it keeps what its last checkpoint has."""
        if last is not None and last.attempt:
            report.step = await self._shop.run(self._workshop.furthest_step, job)
            if last.state not in ("queued", "paused"):  # whoever had it and may wake up has lost it
                report.attempt = await self._claims.take(job)
        return await self._say_paused(job, report, why)

    async def _say_paused(self, job: TrainingJob, report: JobReport, why: str) -> bool:
        """Nobody has to keep a record open for it: the event has all that is needed to go on."""
        await report.say("paused", reason=why, parked=ParkedJob(pool=self._terms.pool, job=job))
        self._after("pause-reported")
        return True

    async def _say_evaluating(self, job: TrainingJob, report: JobReport, number: int | None) -> None:
        """Where a gate decides what becomes of the last revision, the job says so; the evaluators' verdict is an adapter event."""
        await self._bus.catalog_current()
        head = self._bus.catalog.head(job.adapter_id)
        if number is not None and head is not None and head.rule == "gated" and head.aliases.get("production") != number:
            await report.say("evaluating", number=number, reason=f"revision {number} is judged by the gate of {job.adapter_id} now")

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
                self._check(job, report)
                if between_steps is not None:
                    await self._check_paused(between_steps, report, self._pausing(job, report))
                await self._bus.log.moved(min(self._terms.heartbeat_s, left_s))

        return pause

    async def _train(self, work: Work, report: JobReport) -> int | None:
        """All remaining steps. Gives the number of the last revision."""
        try:
            return await self._steps(work, report)
        finally:
            await self._passes.leave(work.run)

    async def _steps(self, work: Work, report: JobReport) -> int | None:
        run, job = work.run, work.run.job
        pause = self._pausing(job, report)
        progress = Progress(job.hyperparameters.steps, self._terms.progress_s if job.rollouts is None else 0.0)
        number = await self._publishing.publish(work, report, pause, saved=True) if run.step and publish_due(job, run.step) else None
        async with self._bus.rollouts.of(run) as experience:
            while not run.done:
                self._check(job, report)
                await self._check_paused(work, report, pause)
                figures = await attended(experience.begin(), self._pausing(job, report, work)) if experience else None
                made = await self._passes.step(run)
                self._after("stepped")
                report.step = run.step
                self._count(work, made, figures)
                if told := progress.add(made):
                    await report.mention("running", **told, rollouts=figures)
                if publish_due(job, run.step):
                    number = await self._publishing.publish(work, report, pause, saved=False)
                elif checkpoint_due(job, run.step):
                    await self._publishing.save(work, report, pause)
        return number

    async def _prove(self, report: JobReport) -> None:
        """Torch failed under a job: its own fault, if the base alone still computes. Else it goes free at once, and this worker ends."""
        try:
            await self._passes.prove()
        except DeviceLost:
            if report.claimed:
                await report.say("queued")
            raise

    async def _end(self, report: JobReport, error: MintError) -> None:
        """The job's terminal event for an error: rejected before its first claim, failed after it."""
        ours = isinstance(error, CorruptObject) or not isinstance(error, Reject)
        if isinstance(error, Cancelled):
            await report.failure("cancelled", error, "user")
        elif ours or report.claimed:
            await report.failure("failed", error, "server" if ours else "user")
        else:
            await report.failure("rejected", error, "user")
        self._after("end-reported")
        self._metrics.jobs_total.labels(report.state).inc()

    async def _parent(self, job: TrainingJob) -> Revision | None:
        """The revision to go on from. Raises a Reject when it cannot be."""
        if job.parent is None:
            return None
        await self._bus.catalog_current()
        revision = self._bus.catalog.revision(job.adapter_id, job.parent)
        if revision is None:
            raise UnknownRevision(f"job {job.job_id}: parent {job.adapter_id}@{job.parent} does not exist")
        if revision.state != "announced":
            kind = RevisionRetired if revision.state == "retired" else RevisionQuarantined
            raise kind(f"job {job.job_id}: parent {job.adapter_id}@{job.parent} is {revision.state}")
        return revision

    def _report(self, job: TrainingJob, last: LastSeen | None) -> JobReport:
        report = JobReport(self._bus.producer, job, self._terms.worker_id, last.attempt if last else 0)
        report.step = last.step if last else 0
        return report

    def _check(self, job: TrainingJob, report: JobReport) -> None:
        """What may end a job between two steps."""
        if report.claimed:
            self._claims.check(job, report.attempt)  # first: who has lost the job says nothing of its end
        self._check_cancelled(job)
        self._check_stopping(job)

    async def _check_paused(self, work: Work, report: JobReport, pause: Pause) -> None:
        """Between two steps: raises Paused when somebody asked for it and the job's state is durable."""
        if why := self._paused(work.run.job):
            if work.run.step and (work.checkpoint is None or work.checkpoint.step != work.run.step):
                await self._publishing.save(work, report, pause)
            self._check(work.run.job, report)
            raise Paused(why)

    def _paused(self, job: TrainingJob) -> str | None:
        """Why the job is to pause; None where it is not, or could not be put into its topic again."""
        why = self._bus.log.pausing(job.job_id)
        return why if why is None or len(job.encode()) <= PARKED_BYTES else None

    def _interrupted(self, job: TrainingJob) -> bool:
        """Whether a job that only waits has to be looked at again."""
        return self._bus.log.cancelled(job.job_id) is not None or self._paused(job) is not None

    def _check_cancelled(self, job: TrainingJob) -> None:
        reason = self._bus.log.cancelled(job.job_id)
        if reason is not None:
            raise Cancelled(f"job {job.job_id} was cancelled: {reason}")

    def _check_stopping(self, job: TrainingJob) -> None:
        if self._stopping:
            raise Released(job.job_id)

    def _count(self, work: Work, made: StepReport, figures: RolloutFigures | None) -> None:
        work.made(made)
        if figures is not None:
            work.metrics["reward"] = figures.reward
        self._metrics.training_steps_total.inc()
        self._metrics.training_tokens_total.inc(made.tokens)
