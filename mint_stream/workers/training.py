"""The training worker: every record of its partitions is a job, and its offset closes when the job is terminal or paused, wherever.

intake ─► decode ─► own partition? ─► after earlier jobs of the adapter ─► JobRunner.run ─► offset closed
             │            └ stray: produced again under its adapter_id ─► offset closed
             └ bad record: rejected (if it says which job) ─► dead letter acked ─► offset closed
"""

import asyncio
import logging
from collections.abc import Collection, Sequence

from mint_stream.bus.intake import Delivery, Intake
from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.contracts import Topic
from mint_stream.errors import InvalidRecord, MintError
from mint_stream.messages.training import TrainingJob
from mint_stream.workers.crew import Crew
from mint_stream.workers.effects import After
from mint_stream.workers.job_runner import JobRunner
from mint_stream.workers.job_stops import Released
from mint_stream.workers.training_parts import TrainingTerms

log = logging.getLogger(__name__)


class TrainingWorker:
    """Takes jobs from the intake. Jobs of one adapter run in the order of their records; the runner decides how many run at once."""

    def __init__(self, intake: Intake, runner: JobRunner, producer: Producer, topic: Topic, terms: TrainingTerms, after: After) -> None:
        """`topic` is the training-jobs topic with the partition count it has."""
        self._intake = intake
        self._runner = runner
        self._producer = producer
        self._topic = topic
        self._terms = terms
        self._after = after
        self._last_of: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._crew = Crew()
        intake.on_condemned = self._condemned

    @property
    def open_jobs(self) -> int:
        """Records taken and not yet closed."""
        return len(self._crew)

    async def run(self) -> None:
        """Work until the intake ends. Raises what a person has to see."""
        await self._crew.run(self._take())

    async def drain(self) -> None:
        """Let go of every job: the running one after its step, free for others from its last checkpoint. Their records stay open."""
        self._runner.stop()
        await self._crew.finish()
        await self._intake.stop()

    async def _take(self) -> None:
        async for delivery in self._intake:
            try:
                job = TrainingJob.decode(delivery.value)
            except InvalidRecord as error:
                self._crew.spawn(self._set_aside(delivery, error))
                continue
            if self._stray(job, delivery):
                self._crew.spawn(self._forward(job, delivery))
            else:
                self._line_up(job, delivery)

    def _line_up(self, job: TrainingJob, delivery: Delivery) -> None:
        """Start the job behind the adapter's last one, and behind one of the same id: it is over then, whoever's this one is."""
        keys = (("adapter", job.adapter_id), ("job", job.job_id))
        task = self._crew.spawn(self._work(job, delivery, {self._last_of[key] for key in keys if key in self._last_of}))
        self._last_of |= dict.fromkeys(keys, task)
        task.add_done_callback(lambda done: self._forget(keys, done))

    def _forget(self, keys: Sequence[tuple[str, str]], done: asyncio.Task[None]) -> None:
        for key in keys:
            if self._last_of.get(key) is done:
                del self._last_of[key]

    async def _work(self, job: TrainingJob, delivery: Delivery, before: Collection[asyncio.Task[None]]) -> None:
        """One job, after the earlier ones. Its lease is the claim, not the partition: a stale delivery is no reason to stop."""
        if before:
            await asyncio.wait(before)
        try:
            await self._runner.run(job)
        except Released:
            return
        await delivery.close()
        self._after("record-closed")

    def _stray(self, job: TrainingJob, delivery: Delivery) -> bool:
        return self._partition_of(job.adapter_id) != delivery.partition

    async def _forward(self, job: TrainingJob, delivery: Delivery) -> None:
        """A producer that hashes keys in another way put it here; all jobs of an adapter belong into one partition.

        It goes on as the bytes it came in: they fit into a record once."""
        if not delivery.stale:
            log.info("forwarding job_id=%s from partition %d", job.job_id, delivery.partition)
            await self._producer.publish_raw(
                Outgoing(delivery.topic, delivery.key, delivery.value, delivery.headers, self._partition_of(job.adapter_id))
            )
            await delivery.close()

    def owns(self, adapter_id: str) -> bool:
        """Whether this worker has the partition of the adapter's jobs now."""
        return self._partition_of(adapter_id) in {partition for _, partition in self._intake.assigned}

    def _partition_of(self, adapter_id: str) -> int:
        return murmur2_partition(adapter_id.encode(), self._topic.partitions)

    async def _set_aside(self, delivery: Delivery, error: MintError) -> None:
        if not delivery.stale:
            log.warning("dead letter topic=%s partition=%d offset=%d %s", delivery.topic, delivery.partition, delivery.offset, error)
            await self._runner.bury(delivery.value, error, "rejected")
            await delivery.dead_letter(error)

    async def _condemned(self, delivery: Delivery, error: MintError) -> None:
        """The intake found that this record ends every worker: whoever waits for the job hears of it."""
        await self._runner.bury(delivery.value, error, "failed")
