"""The evaluate role: gates and canaries of every pool; run as many as you like. It needs no torch."""

import math
from contextlib import AsyncExitStack

from mint_stream import contracts
from mint_stream.app import logs
from mint_stream.app.provisioned import topics
from mint_stream.app.shell import Shell
from mint_stream.app.watched import run_watched
from mint_stream.app.workplace import Workplace
from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.membership import Membership
from mint_stream.bus.producer import Producer
from mint_stream.bus.requests import RequestReply
from mint_stream.bus.table import LogReader
from mint_stream.client.connect import connection_from
from mint_stream.messages.fleet import WorkerState, WorkerStatus
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings
from mint_stream.store import read_uri
from mint_stream.workers.asking import Asking
from mint_stream.workers.canary_counts import CanaryCounts
from mint_stream.workers.clock import now_ms
from mint_stream.workers.commands import Commands
from mint_stream.workers.evaluation import After, Evaluator, Patience
from mint_stream.workers.insisting import AskingLimits, Insisting
from mint_stream.workers.measuring import Measuring
from mint_stream.workers.open_trials import OpenTrials

GROUP = "evaluate"
PATIENCE_S = 3600.0
"""How long a pool may be away, or too slow for a question, before a trial is given up."""
MAX_DATASET_BYTES = 64 * 2**20


async def run(settings: Settings) -> None:
    """Evaluate until told to stop. Raises a Stop that says what a person has to change."""
    logs.configure(settings.log_json)
    connection, metrics = connection_from(settings), Metrics()
    with Workplace(settings.home, "evaluate", settings.worker_id) as workplace:
        await Shell((EvaluateRole(settings, connection, metrics, workplace),), connection, metrics).serve(settings.http)


def nothing(_effect: str, _adapter_id: str) -> None:
    """What a real evaluator does after an effect."""


class EvaluateRole:
    """Builds the evaluator's parts in the order in which they need each other, and takes them down in reverse."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        metrics: Metrics,
        workplace: Workplace,
        after: After = nothing,
        patience: Patience | None = None,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._metrics = metrics
        self._workplace = workplace
        self._after = after
        self._patience = patience or Patience()
        self._parts = AsyncExitStack()
        self._evaluator: Evaluator | None = None
        self._started_at_ms = now_ms()

    async def start(self) -> None:
        """Ready when every open trial and every count is known, and the group has a place for it."""
        await self._verify()
        producer = Producer(self._connection, source=f"mint-stream/{self._workplace.worker_id}")
        replies, commands, counts = RequestReply(self._connection, producer), Commands(self._connection, producer), CanaryCounts()
        self._evaluator = Evaluator(self._measuring(replies), counts, commands, self._metrics, self._after, self._patience)
        self._trials = OpenTrials(self._evaluator.look)
        heads = LogReader(self._connection, contracts.ADAPTER_REVISIONS.name(), self._trials.apply)
        statuses = LogReader(self._connection, contracts.WORKER_STATUS.name(), counts.apply)
        self._membership = Membership(
            self._connection, GROUP, contracts.ADAPTER_REVISIONS.name(), self._evaluator.look, self._workplace.worker_id
        )
        self._watched = (replies, commands, heads, statuses, self._membership)
        for part in (producer, *self._watched):
            await part.start()
            self._parts.push_async_callback(part.stop)
            if isinstance(part, LogReader):
                await part.caught_up()

    async def run(self) -> None:
        """Evaluate until drained; raise when a reader or the membership fails."""
        assert self._evaluator is not None
        work = self._evaluator.run(self._trials, lambda: self._membership.owned)
        await run_watched(work, (part.run_until_failed() for part in self._watched))

    async def drain(self) -> None:
        """Let go of every trial and leave the group."""
        assert self._evaluator is not None
        await self._evaluator.drain()
        await self._parts.aclose()

    def status(self, state: WorkerState) -> WorkerStatus:
        """How many trials it holds."""
        return WorkerStatus(
            worker_id=self._workplace.worker_id,
            role="evaluate",
            state=state,
            running=self._evaluator.held if self._evaluator else 0,
            started_at_ms=self._started_at_ms,
            at_ms=now_ms(),
        )

    async def _verify(self) -> None:
        declared = topics(self._settings)
        ours = [topic for topic in declared.values() if "evaluate" in (*topic.producers, *topic.consumers)]
        await provision.verify(self._connection, ours, self._settings.pool_name)

    def _measuring(self, replies: RequestReply) -> Measuring:
        limits = self._settings.evaluation
        silences = math.ceil(PATIENCE_S / limits.request_timeout_s)
        asked = AskingLimits(limits.requests_at_once, limits.request_timeout_s, silences=silences)
        return Measuring(Asking(Insisting(replies, asked)), self._read)

    def _read(self, uri: str) -> bytes:
        store = self._settings.store
        return read_uri(uri, (self._settings.store_uri, *store.allowed_roots), MAX_DATASET_BYTES, store.options)
