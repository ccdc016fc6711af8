"""Which revision came from which: the records of an adapter as a tree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mint_stream.messages.adapters import Revision

TOLD_APART = frozenset({"adapter_id", "pool", "number", "parent"})
"""Fields that the tree itself says, or that are the same for all."""


@dataclass(frozen=True)
class Descent:
    """A revision in the tree. `depth` grows where a parent has several children, not along a single line."""

    revision: Revision
    depth: int
    children: tuple[int, ...]

    def facts(self) -> dict[str, Any]:
        """Whatever the record says of where the revision comes from; fields that a later record has appear by themselves."""
        return {name: value for name, value in self.revision.model_dump(exclude_none=True).items() if name not in TOLD_APART}


def lineage(revisions: Sequence[Revision]) -> Iterator[Descent]:
    """Every revision once, each after its parent, children by number. One whose parent is not among them begins a tree of its own."""
    known = {revision.number: revision for revision in revisions}
    children: dict[int | None, list[int]] = {}
    for number in sorted(known):
        parent = known[number].parent
        children.setdefault(parent if parent in known and parent < number else None, []).append(number)
    waiting = [(number, 0) for number in reversed(children.get(None, []))]
    while waiting:
        number, depth = waiting.pop()
        own = children.get(number, [])
        yield Descent(known[number], depth, tuple(own))
        waiting.extend((child, depth + (len(own) > 1)) for child in reversed(own))
