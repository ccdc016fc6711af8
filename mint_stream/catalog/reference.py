"""What a request may name: `adapter`, `adapter@7`, `adapter@alias`."""

from dataclasses import dataclass

from mint_stream.errors import NoProductionRevision, RevisionQuarantined, RevisionRetired, UnknownAdapter, UnknownRevision
from mint_stream.messages.adapters import Head, Revision

PRODUCTION = "production"

_LONGEST_NUMBER = 18


@dataclass(frozen=True, slots=True)
class Reference:
    """An adapter and the revision meant: by number, else by alias."""

    adapter_id: str
    number: int | None
    alias: str

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """`a` means a@production. A part after @ made of digits is a number."""
        adapter_id, at, wanted = text.partition("@")
        if not at:
            return cls(adapter_id, None, PRODUCTION)
        numeric = wanted.isascii() and wanted.isdigit() and len(wanted) <= _LONGEST_NUMBER
        return cls(adapter_id, int(wanted), "") if numeric else cls(adapter_id, None, wanted)

    def known(self, head: Head | None) -> Head:
        """The head, when there is one. Raises UnknownAdapter."""
        if head is None:
            raise UnknownAdapter(
                f"no adapter {self.adapter_id!r} in the catalog: import or train it, or ask for the base with adapter null"
            )
        return head

    def number_in(self, head: Head) -> int:
        """The number meant, as the adapter's head stands. Raises UnknownRevision or NoProductionRevision."""
        if self.number is not None:
            return self.number
        number = head.aliases.get(self.alias)
        if number is not None:
            return number
        if self.alias == PRODUCTION:
            raise NoProductionRevision(
                f"adapter {self.adapter_id} has no production revision: promote one, or name one of {_choices(head)}"
            )
        raise UnknownRevision(f"adapter {self.adapter_id} has no alias {self.alias!r}: name one of {_choices(head)}")


def _choices(head: Head) -> str:
    aliases = [f"{head.adapter_id}@{alias}" for alias in sorted(head.aliases)]
    newest = [f"{head.adapter_id}@{head.next_number - 1}"] if head.next_number > 1 else []
    return ", ".join(newest + aliases) or "(it has no revisions)"


def servable(head: Head, number: int, revision: Revision | None) -> Revision:
    """The revision, if it may be served. Raises UnknownRevision, RevisionRetired or RevisionQuarantined."""
    name = f"{head.adapter_id}@{number}"
    if revision is None:
        raise UnknownRevision(f"there is no {name}: name one of {_choices(head)}")
    if revision.state == "retired":
        raise RevisionRetired(f"{name} was retired and is not served any more: name one of {_choices(head)}")
    if revision.state == "quarantined":
        raise RevisionQuarantined(f"{name} is quarantined ({revision.reason}): name one of {_choices(head)}")
    return revision
