"""One command before one adapter's state: what every rule looks up, and the two ways of not carrying it out."""

from dataclasses import dataclass
from typing import Any

from mint_stream.catalog.state import AdapterState
from mint_stream.messages.adapters import AdapterCommand, Head, RememberedCommand, Revision
from mint_stream.messages.shared import CatalogPosition

REMEMBERED_COMMANDS = 32
"""How many of an adapter's last carried-out commands are recognised when repeated. A job's announces are recognised for ever."""


class Refusal(Exception):
    """The command is not carried out; the text says why and what to do instead."""


class Repetition(Exception):
    """The command was carried out before, with this outcome."""

    def __init__(self, number: int | None = None, attempt: int | None = None) -> None:
        super().__init__(number, attempt)
        self.number = number
        self.attempt = attempt


@dataclass(frozen=True)
class Case:
    """A command to be decided."""

    state: AdapterState
    command: AdapterCommand
    now_ms: int

    @property
    def stamp(self) -> dict[str, Any]:
        """What every event of this command carries."""
        return {"command_id": self.command.command_id, "adapter_id": self.command.adapter_id, "at_ms": self.now_ms}

    def check_repetition(self) -> None:
        """Raises Repetition for a command_id that is remembered."""
        for known in self.state.head.commands if self.state.head is not None else ():
            if known.command_id == self.command.command_id:
                raise Repetition(known.number, known.attempt)

    def check_pool(self, head: Head, pool: str) -> None:
        """Raises Refusal when the adapter belongs to another pool."""
        if head.pool != pool:
            raise Refusal(f"adapter {head.adapter_id} belongs to pool {head.pool}, not {pool}: choose another adapter_id for this pool")

    def check_position(self, expected: CatalogPosition | None) -> None:
        """Raises Refusal unless the head stands at `expected`, when any position is."""
        actual = self.state.position
        if expected is not None and expected != actual:
            now = f"{actual.partition}:{actual.offset}" if actual is not None else "nowhere"
            raise Refusal(f"the head was expected at {expected.partition}:{expected.offset} and stands at {now}: look again, then decide")

    def head_in(self, pool: str) -> Head:
        """The head, or that of an adapter that begins in this pool now."""
        first = self.state.first_number
        return self.state.head or Head(adapter_id=self.command.adapter_id, pool=pool, first_number=first, next_number=first)

    def existing_head(self) -> Head:
        """The head. Raises Refusal when there is no such adapter."""
        if self.state.head is None:
            raise Refusal(f"there is no adapter {self.command.adapter_id}: announce a revision of it first")
        return self.state.head

    def existing_revision(self, number: int) -> Revision:
        """The revision. Raises Refusal when there is none of this number."""
        revision = self.state.revision(number)
        if revision is None:
            last = self.state.head.next_number - 1 if self.state.head is not None else 0
            raise Refusal(f"adapter {self.command.adapter_id} has no revision {number}, its last is {last}")
        return revision

    def check_servable(self, number: int) -> None:
        """Raises Refusal unless the revision is announced."""
        revision = self.existing_revision(number)
        if revision.state != "announced":
            raise Refusal(f"revision {number} is {revision.state}: only an announced one can be promoted or be a canary")

    def remembering(self, head: Head, number: int | None = None, attempt: int | None = None) -> Head:
        """The head with this command among those it remembers."""
        remembered = RememberedCommand(command_id=self.command.command_id, number=number, attempt=attempt)
        return head.model_copy(update={"commands": (*head.commands, remembered)[-REMEMBERED_COMMANDS:]})
