"""What training jobs are run with: who trains, what of Kafka, and where."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mint_stream.bus.producer import Producer
from mint_stream.catalog import Catalog
from mint_stream.messages.training import TrainingJob
from mint_stream.trainer.workshop import Workshop
from mint_stream.workers.commands import Commands
from mint_stream.workers.job_log import JobLog, LastSeen
from mint_stream.workers.job_report import JobReport
from mint_stream.workers.pass_loop import PassLoop
from mint_stream.workers.quotas import Quotas
from mint_stream.workers.rollouts import Rollouts
from mint_stream.workers.seats import Seats
from mint_stream.workers.torch_thread import TorchThread


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

    def report(self, job: TrainingJob, worker_id: str, last: LastSeen | None) -> JobReport:
        """For what this worker has to say of a job that was last seen so."""
        report = JobReport(self.producer, job, worker_id, last.attempt if last else 0)
        report.step = last.step if last else 0
        return report


@dataclass(frozen=True)
class TrainingRoom:
    """Where jobs are worked on: between their steps each by itself on the shop's threads, in passes together."""

    workshop: Workshop
    shop: TorchThread
    passes: PassLoop
    seats: Seats
