"""A fleet for tests of the evaluate role: registrar, a scripted pool, a dataset of 128 items, and everything said of one adapter.

async with Evaluation.on(connection, tmp_path) as ground:      registrar, pool; the adapter has revision 1 as production
    await ground.gate(floor=0.6, canary=...)                    the rule
    async with ground.evaluator(): await ground.publish()       an evaluate role in this process; the next revision
    event = await ground.judged(phase="gate")                   the verdict
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from mint_stream import contracts
from mint_stream.app.evaluate import EvaluateRole, nothing
from mint_stream.app.workplace import Workplace
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.cache import Backoff
from mint_stream.client import AdapterView, Client
from mint_stream.messages.adapters import AdapterCommand, AdapterEvent, Announce, decode_event
from mint_stream.messages.gates import CanaryTerms, CandidateJudged, GateTerms
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings
from mint_stream.workers.evaluation import After, Patience
from tests.adapter_commands import BASE, announce
from tests.provisioned import PARTITIONS, ensure_topics
from tests.registrar_ground import Ground
from tests.scripted_pool import Said, ScriptedPool

ITEMS = 128
QUICK = Patience(look_s=0.1, retries=Backoff(attempts=3, first_s=0.05))


def right(share: int) -> Callable[[str], Said]:
    """Answers `share` of ten questions rightly; what is no question is repeated."""

    def say(prompt: str) -> Said:
        number = prompt.removeprefix("q")
        return Said(f"a{number}" if number.isdigit() and int(number) % 10 < share else prompt)

    return say


class Evaluation:
    """See the module. `skills`: what each revision says; those not named are right in seven of ten."""

    def __init__(self, connection: Connection, room: Path) -> None:
        self.connection = connection
        self.room = room
        self.name = f"gated-{uuid4().hex[:8]}"
        self.skills: dict[int, Callable[[str], Said]] = {}
        self.events: list[AdapterEvent] = []
        self._said = asyncio.Event()
        self._parts = AsyncExitStack()
        self.dataset = self.write_items("items.jsonl", "q")
        self.settings = Settings.load(
            pool=self.name,
            home=room / "home",
            partitions=PARTITIONS,
            kafka={"bootstrap_servers": connection.bootstrap_servers},
            store={"uri": (room / "store").as_uri(), "allowed_roots": (room.as_uri(),)},
        )

    @classmethod
    @asynccontextmanager
    async def on(cls, connection: Connection, room: Path) -> AsyncIterator[Self]:
        ground = cls(connection, room)
        async with ground._parts:
            await ground._build()
            yield ground

    async def _build(self) -> None:
        await ensure_topics(self.connection, self.name)
        registrars = Ground.of_fleet(self.connection)
        base = BASE.model_copy(update={"pool": self.name})
        await registrars.publish(Outgoing(contracts.BASE_MODELS.name(), self.name.encode(), base.encode()))
        await self._parts.enter_async_context(registrars.registrar())
        self.serving = await self._parts.enter_async_context(ScriptedPool(self.connection, self.name, self.room, self._say))
        self.client = await self._parts.enter_async_context(Client(self.settings))
        self._producer = Producer(self.connection, "test")
        self.reader = LogReader(self.connection, contracts.ADAPTER_EVENTS.name(), self._hear)
        for part in (self._producer, self.reader):
            await part.start()
            self._parts.push_async_callback(part.stop)
        await self.publish()

    def write_items(self, file: str, letter: str, count: int = ITEMS) -> str:
        """A dataset of questions `q0` with answers `a0`; gives its uri."""
        lines = [json.dumps({"prompt": f"{letter}{number}", "answer": f"a{number}"}) for number in range(count)]
        (self.room / file).write_text("\n".join(lines))
        return (self.room / file).as_uri()

    def patient(self, **limits: float) -> None:
        """How evaluators from now on ask."""
        self.settings = self.settings.model_copy(update={"evaluation": self.settings.evaluation.model_copy(update=limits)})

    async def publish(self) -> int:
        """One more revision; gives its number."""
        command = announce(self.name, pool=self.name)
        command = Announce(**{**command.model_dump(), "command_id": uuid4().hex, "issued_at_ms": 10**15})
        await self.send(command)
        event = await self.heard(lambda event: event.type == "revision-announced" and event.command_id == command.command_id)
        return event.number

    async def send(self, command: AdapterCommand) -> None:
        """Produce a command of the adapter."""
        await self._producer.publish(contracts.ADAPTER_COMMANDS, command, self.name)

    async def gate(self, canary: CanaryTerms | None = None, **changes: Any) -> None:
        """Set the rule to `gated`."""
        terms = {"dataset_uri": self.dataset, "grader": "exact-match", "floor": 0.6, "canary": canary, **changes}
        await self.client.set_rule(self.name, "gated", GateTerms(**terms))

    @asynccontextmanager
    async def evaluator(self, after: After = nothing) -> AsyncIterator[EvaluateRole]:
        """An evaluate role in this process, drained at the end."""
        with Workplace(self.settings.home, "evaluate") as workplace:
            role = EvaluateRole(self.settings, self.connection, Metrics(), workplace, after, QUICK)
            await role.start()
            working = asyncio.create_task(role.run())
            try:
                yield role
            finally:
                await role.drain()
                await working

    async def judged(self, number: int, phase: str) -> CandidateJudged:
        """The verdict on a revision in a phase."""
        wanted = ("candidate-judged", number, phase)
        return await self.heard(lambda event: (event.type, getattr(event, "number", 0), getattr(event, "phase", "")) == wanted)

    async def heard(self, wanted: Callable[[AdapterEvent], bool]) -> Any:
        """The first such event of the adapter. The test's own timeout ends a wait in vain; a reader that failed ends it at once."""
        while True:
            for event in self.events:
                if wanted(event):
                    return event
            self._said.clear()
            await self.either(self._said.wait())

    async def either(self, waiting: Awaitable[object]) -> None:
        """Wait, unless the reader of events fails first."""
        tasks = [asyncio.ensure_future(waiting), asyncio.ensure_future(self.reader.run_until_failed())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def traffic(self, until: Callable[[AdapterEvent], bool], prompt: str = "hello") -> Any:
        """Ask for production until such an event is heard."""
        while not any(until(event) for event in self.events):
            await self.client.generate(prompt, self.name)
        return await self.heard(until)

    async def view(self) -> AdapterView:
        return await self.client.adapter(self.name)

    def _say(self, number: int, prompt: str) -> Said:
        return self.skills.get(number, right(7))(prompt)

    def _hear(self, _partition: int, records: list[LogRecord], _next: int) -> None:
        events = [decode_event(record.value) for record in records if record.key == self.name.encode()]
        self.events += events
        self._said.set()
