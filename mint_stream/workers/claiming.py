"""The claim on an adapter: asked for with the attempt expected, granted by the registrar, lost to whoever is granted a later one."""

import uuid

from mint_stream.catalog import Catalog
from mint_stream.errors import CommandRejected, OwnershipLost
from mint_stream.messages.adapters import Claim, CommandRejectedEvent
from mint_stream.messages.training import TrainingJob
from mint_stream.workers.clock import now_ms
from mint_stream.workers.commands import Answer, Commands


class Claims:
    """Claims for one worker. A refused claim teaches which attempt is next, for when the job turns out to be free after all."""

    def __init__(self, commands: Commands, catalog: Catalog, pool: str) -> None:
        self._commands = commands
        self._catalog = catalog
        self._pool = pool
        self._known: dict[str, int] = {}

    async def take(self, job: TrainingJob) -> int:
        """The attempt granted. Raises OwnershipLost when another claim came first, CommandRejected when there can be none."""
        expected = max(self._current(job.adapter_id), self._known.get(job.adapter_id, 0)) + 1
        command = Claim(
            command_id=f"claim/{uuid.uuid4()}",  # of this life of this worker alone: nobody else may be answered "granted before"
            adapter_id=job.adapter_id,
            issued_at_ms=now_ms(),
            job_id=job.job_id,
            pool=self._pool,
            expected_attempt=expected,
        )
        answer = await (await self._commands.send(command)).answer()
        if isinstance(answer, CommandRejectedEvent):
            self._refused(job, expected, answer)
        self._known.pop(job.adapter_id, None)
        return expected

    def check(self, job: TrainingJob, attempt: int) -> None:
        """Raises OwnershipLost when the catalog shows a later claim."""
        current = self._current(job.adapter_id)
        if current > attempt:
            raise OwnershipLost(f"attempt {attempt} of job {job.job_id} was superseded by attempt {current} on adapter {job.adapter_id}")

    def check_answer(self, job: TrainingJob, attempt: int, answer: Answer) -> None:
        """Raises OwnershipLost or CommandRejected when the registrar refused what this attempt asked for."""
        if not isinstance(answer, CommandRejectedEvent):
            return
        if (answer.current_attempt or 0) > attempt:
            raise OwnershipLost(f"attempt {attempt} of job {job.job_id} was superseded: {answer.reason}")
        raise CommandRejected(f"job {job.job_id}: the registrar refused its {answer.command}: {answer.reason}")

    def _refused(self, job: TrainingJob, expected: int, answer: CommandRejectedEvent) -> None:
        current = answer.current_attempt
        if current is None or current == expected - 1:
            raise CommandRejected(f"job {job.job_id}: the registrar refused its claim on {job.adapter_id}: {answer.reason}")
        self._known[job.adapter_id] = current
        raise OwnershipLost(f"job {job.job_id} expected attempt {expected} of {job.adapter_id} and {current} is taken: {answer.reason}")

    def _current(self, adapter_id: str) -> int:
        head = self._catalog.head(adapter_id)
        return head.attempt if head is not None else 0
