"""What users import: every thing a user can do, as a method that writes a record and reads the records that answer."""

from collections.abc import AsyncIterator
from typing import Any, Self, TypeVar

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.routing import Routing
from mint_stream.client.answers import Answers, Part
from mint_stream.client.commands import Commands
from mint_stream.client.connect import connection_from
from mint_stream.client.controls import check_control
from mint_stream.client.feed import Feed
from mint_stream.client.history import AdapterThen
from mint_stream.client.listing import AdapterView
from mint_stream.client.partitions import Partitions, Since
from mint_stream.client.readings import Readings
from mint_stream.client.requests import Prompt, Ticket, made, new_id, now_ms, request_of
from mint_stream.client.results import Results
from mint_stream.errors import InvalidRequest
from mint_stream.messages.adapters import (
    AdapterCommand,
    AdapterEvent,
    Announce,
    Canary,
    Delete,
    Manifest,
    Promote,
    PromotionRule,
    Retire,
    RollBack,
    SetCanary,
    SetRule,
    SetSpread,
)
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.gates import GateTerms
from mint_stream.messages.inference import Cancellation, InferenceRequest, InferenceResult, Sampling
from mint_stream.messages.shared import CatalogPosition
from mint_stream.messages.training import Action, TrainingControl, TrainingEvent, TrainingJob
from mint_stream.settings import BUILTIN_BASE, Settings

T = TypeVar("T")

ANSWER_S = 30.0
"""How long a command waits for the registrar, unless told otherwise."""

RESULT_S = 120.0
"""How long a request waits for its result; it is the request's deadline too."""


class Client:
    """`async with Client(settings) as client:` or with a Connection, or with bootstrap servers as a string.

    Everything is a record on a topic: a client holds no state that another one would miss. Nothing here imports torch."""

    def __init__(self, source: Settings | Connection | str, pool: str | None = None, name: str = "client") -> None:
        self.connection = connection_from(source)
        self.pool = pool or (source.pool_name if isinstance(source, Settings) else BUILTIN_BASE)
        self._name = name
        self._producer = Producer(self.connection, source=name)
        self._partitions = Partitions(self.connection)
        self._commands = Commands(self._producer, self._partitions)
        routing = Routing()
        self._results = Results(self._producer, self._partitions, self.pool, routing)
        self._readings = Readings(self._partitions)
        self._answers = Answers(self._producer, self._partitions, self.pool, routing)
        self._feeds: list[Feed[Any]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect. Raises BusUnavailable when no broker answers."""
        await self._producer.start()

    async def stop(self) -> None:
        """End every feed that is still open, and disconnect."""
        for feed in self._feeds:
            await feed.aclose()
        await self._commands.stop()
        await self._answers.stop()
        await self._producer.stop()

    async def generate(
        self,
        prompt: Prompt,
        adapter: str | None = None,
        *,
        sampling: Sampling | None = None,
        request_id: str | None = None,
        tenant: str = "default",
        timeout_s: float = RESULT_S,
        after: CatalogPosition | None = None,
    ) -> InferenceResult:
        """Ask and wait. `after` is a catalog position the worker must have reached, e.g. of the event a promote returned.

        An error result is returned, not raised (see `raise_for_error`). Raises ReplyTimeout, RequestConflict, InvalidRequest."""
        return await self.ask(request_of(prompt, adapter, sampling, request_id, tenant, timeout_s, after), timeout_s)

    async def ask(self, request: InferenceRequest, timeout_s: float = RESULT_S) -> InferenceResult:
        """As `generate`, for a request already made."""
        return await self._answers.ask(request, timeout_s)

    async def stream(
        self,
        prompt: Prompt,
        adapter: str | None = None,
        *,
        sampling: Sampling | None = None,
        request_id: str | None = None,
        tenant: str = "default",
        timeout_s: float = RESULT_S,
        after: CatalogPosition | None = None,
    ) -> AsyncIterator[Part]:
        """The completion as it is made: chunks, then the result, which has the whole text.

        After a StreamRestart (another worker took over) the text begins anew."""
        request = request_of(prompt, adapter, sampling, request_id, tenant, timeout_s, after)
        async for part in self._answers.stream(request, timeout_s):
            yield part

    async def submit(
        self,
        prompt: Prompt,
        adapter: str | None = None,
        *,
        sampling: Sampling | None = None,
        request_id: str | None = None,
        tenant: str = "default",
        deadline_s: float = RESULT_S,
        after: CatalogPosition | None = None,
    ) -> Ticket:
        """Ask without waiting. The ticket collects the result later, here or in another process."""
        return await self._results.submit(request_of(prompt, adapter, sampling, request_id, tenant, deadline_s, after))

    async def result(self, ticket: Ticket, timeout_s: float = RESULT_S) -> InferenceResult:
        """The result of a submitted request. Raises ReplyTimeout, RequestConflict."""
        return await self._results.collect(ticket, timeout_s)

    async def result_of(self, request_id: str, tenant: str = "default", timeout_s: float = RESULT_S) -> InferenceResult:
        """The result of a request that anybody submitted, in this process or another, and nothing else is known of. Raises ReplyTimeout."""
        return await self._results.find(request_id, tenant, timeout_s)

    async def cancel(self, request_id: str, reason: str = "", tenant: str = "default") -> None:
        """Stop working on a tenant's request: its result will be the error `cancelled`, unless it is already there."""
        fields = {"tenant": tenant, "request_id": request_id, "reason": reason, "cancelled_at_ms": now_ms()}
        record = made(Cancellation, InvalidRequest, **fields)
        await self._producer.publish(contracts.INFERENCE_CANCELLATIONS, record, request_id)

    async def train(self, job: TrainingJob) -> str:
        """Submit a job and give its id. Submitting the same job_id again starts nothing new."""
        await self._producer.publish(contracts.TRAINING_JOBS, job, job.adapter_id, pool=self.pool)
        return job.job_id

    def watch(self, job_id: str, heartbeats: bool = False) -> Feed[TrainingEvent]:
        """The events of a job from its first on, until it ends. Heartbeats are left out unless asked for."""
        return self._opened(self._readings.job(job_id, heartbeats))

    async def job_history(self, job_id: str) -> tuple[TrainingEvent, ...]:
        """Everything said of a job up to now, its heartbeats left out; none of a job that nobody has taken."""
        return await self._readings.history(job_id)

    async def job(self, job_id: str) -> TrainingEvent:
        """How a job stands: its latest event, with what earlier ones told and it does not. Raises UnknownJob."""
        return await self._readings.job_standing(job_id)

    async def jobs(self) -> tuple[TrainingEvent, ...]:
        """The latest event of every job, by the time it was said."""
        return await self._readings.jobs()

    async def cancel_job(self, job_id: str, reason: str = "") -> None:
        """Stop a job. It ends with state `cancelled`; what it published stays."""
        await self._control(job_id, "cancel", reason)

    async def pause_job(self, job_id: str, reason: str = "", by: str | None = None) -> None:
        """Have a job wait at its next step until it is resumed. Others have its seat meanwhile, also later jobs of its adapter.

        `by`: who asks, for its history; None is this client's name. Raises UnknownJob, and ControlRefused for one that has ended or is
        paused."""
        check_control(job_id, "pause", await self._readings.job_now(job_id, self.pool))
        await self._control(job_id, "pause", reason, by)

    async def resume_job(self, job_id: str, reason: str = "", by: str | None = None) -> None:
        """Let a paused job go on from its checkpoint, behind what waits already. Raises UnknownJob, ControlRefused."""
        check_control(job_id, "resume", await self._readings.job_now(job_id, self.pool))
        await self._control(job_id, "resume", reason, by)

    def revisions(self, adapter_id: str | None = None, since: Since = "latest") -> Feed[AdapterEvent]:
        """Events of one adapter, or of all: announced, aliases moved, quarantined, retired, rejected. `since` is an end or a moment."""
        return self._opened(self._readings.events(adapter_id, since))

    async def adapters(self) -> tuple[AdapterView, ...]:
        """Every adapter of the catalog as it stands now."""
        return await self._readings.adapters()

    async def adapter(self, adapter_id: str) -> AdapterView:
        """One adapter. Raises UnknownAdapter."""
        return await self._readings.adapter(adapter_id)

    async def adapter_at(self, adapter_id: str, at_ms: int) -> AdapterThen | None:
        """One adapter as it was at a moment (milliseconds since 1970 UTC); None when there was none of this name then."""
        return await self._readings.adapter_at(adapter_id, at_ms)

    async def pool_base(self) -> PoolBase:
        """The base of this client's pool. Raises BaseUnusable while no worker has founded the pool."""
        return await self._readings.pool_base(self.pool)

    async def announce(
        self,
        adapter_id: str,
        manifest: Manifest,
        *,
        parent: int | None = None,
        promotion: PromotionRule | None = None,
        command_id: str | None = None,
        timeout_s: float = ANSWER_S,
    ) -> AdapterEvent:
        """Make files that are already in the store the adapter's next revision. `promotion` becomes the rule of one without any."""
        fields = {"pool": self.pool, "manifest": manifest, "parent": parent, "promotion": promotion}
        return await self._command(Announce, adapter_id, command_id, timeout_s, **fields)

    async def promote(
        self,
        adapter_id: str,
        number: int,
        alias: str = "production",
        *,
        expected_position: CatalogPosition | None = None,
        command_id: str | None = None,
        timeout_s: float = ANSWER_S,
    ) -> AdapterEvent:
        """Point an alias at a revision; with `expected_position`, only while the adapter's head stands there."""
        fields = {"number": number, "alias": alias, "expected_position": expected_position}
        return await self._command(Promote, adapter_id, command_id, timeout_s, **fields)

    async def rollback(
        self,
        adapter_id: str,
        *,
        expected_position: CatalogPosition | None = None,
        command_id: str | None = None,
        timeout_s: float = ANSWER_S,
    ) -> AdapterEvent:
        """Point production back at `previous` and set the rule to manual."""
        return await self._command(RollBack, adapter_id, command_id, timeout_s, expected_position=expected_position)

    async def retire(self, adapter_id: str, number: int, *, command_id: str | None = None, timeout_s: float = ANSWER_S) -> AdapterEvent:
        """Stop serving a revision."""
        return await self._command(Retire, adapter_id, command_id, timeout_s, number=number)

    async def delete(
        self,
        adapter_id: str,
        *,
        force: bool = False,
        expected_position: CatalogPosition | None = None,
        command_id: str | None = None,
        timeout_s: float = ANSWER_S,
    ) -> AdapterEvent:
        """End an adapter with all its revisions; without `force` only one without production and claim. There is no way back.

        Only the one whose head stands at `expected_position` (None: where it stands now). Raises UnknownAdapter, CommandRejected."""
        seen = expected_position or (await self.adapter(adapter_id)).position
        return await self._command(Delete, adapter_id, command_id, timeout_s, force=force, expected_position=seen)

    async def set_rule(
        self,
        adapter_id: str,
        rule: PromotionRule,
        gate: GateTerms | None = None,
        *,
        command_id: str | None = None,
        timeout_s: float = ANSWER_S,
    ) -> AdapterEvent:
        """Choose what an announce does to production. `gate`: what the rule `gated` asks; None leaves what it asked before."""
        return await self._command(SetRule, adapter_id, command_id, timeout_s, rule=rule, gate=gate)

    async def set_canary(
        self,
        adapter_id: str,
        canary: Canary | None,
        *,
        expected_position: CatalogPosition | None = None,
        command_id: str | None = None,
        timeout_s: float = ANSWER_S,
    ) -> AdapterEvent:
        """Answer a share of the requests for production by another revision; None ends that."""
        return await self._command(SetCanary, adapter_id, command_id, timeout_s, canary=canary, expected_position=expected_position)

    async def set_spread(self, adapter_id: str, spread: int, *, command_id: str | None = None, timeout_s: float = ANSWER_S) -> AdapterEvent:
        """Lay an adapter's requests over so many partitions, for one that a single worker cannot keep up with."""
        return await self._command(SetSpread, adapter_id, command_id, timeout_s, spread=spread)

    async def _command(
        self, kind: type[AdapterCommand], adapter_id: str, command_id: str | None, timeout_s: float, **fields: Any
    ) -> AdapterEvent:
        fields |= {"command_id": command_id or new_id(), "adapter_id": adapter_id, "issued_at_ms": now_ms()}
        return await self._commands.send(made(kind, InvalidRequest, **fields), timeout_s)

    async def _control(self, job_id: str, action: Action, reason: str, by: str | None = None) -> None:
        fields = {"job_id": job_id, "action": action, "reason": reason, "issued_by": by or self._name, "issued_at_ms": now_ms()}
        await self._producer.publish(contracts.TRAINING_CONTROLS, made(TrainingControl, InvalidRequest, **fields), job_id)

    def _opened(self, feed: Feed[T]) -> Feed[T]:
        self._feeds = [*(known for known in self._feeds if not known.closed), feed]
        return feed
