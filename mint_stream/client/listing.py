"""A picture of the catalog for people: every adapter with its head and its revisions, folded from `adapter-revisions`."""

from dataclasses import dataclass, field

from mint_stream.messages.adapters import SPENT_PREFIX, Head, Revision
from mint_stream.messages.shared import CatalogPosition


@dataclass(frozen=True)
class AdapterView:
    """One adapter as the catalog has it, and where its head's record stands."""

    head: Head
    position: CatalogPosition
    revisions: tuple[Revision, ...]
    """Ascending by number."""

    @property
    def adapter_id(self) -> str:
        """The adapter's name."""
        return self.head.adapter_id

    @property
    def production(self) -> int | None:
        """The number production points at."""
        return self.head.aliases.get("production")


@dataclass
class CatalogFold:
    """Applies catalog records in log order. Law: the view depends only on the last record of each key."""

    _heads: dict[str, tuple[Head, CatalogPosition]] = field(default_factory=dict)
    _revisions: dict[str, dict[int, Revision]] = field(default_factory=dict)

    def apply(self, position: CatalogPosition, key: bytes, value: bytes | None) -> None:
        """One record of `adapter-revisions`: a head, a revision, or the tombstone of either."""
        if key.startswith(SPENT_PREFIX):
            return
        adapter_id, _, part = key.decode().rpartition("/")
        if part == "head":
            self._apply_head(position, adapter_id, value)
        elif value:
            self._revisions.setdefault(adapter_id, {})[int(part)] = Revision.decode(value)
        else:
            self._revisions.get(adapter_id, {}).pop(int(part), None)

    def views(self) -> tuple[AdapterView, ...]:
        """Every adapter by name."""
        return tuple(self._view(adapter_id) for adapter_id in sorted(self._heads))

    def _apply_head(self, position: CatalogPosition, adapter_id: str, value: bytes | None) -> None:
        if value:
            self._heads[adapter_id] = (Head.decode(value), position)
        else:
            self._heads.pop(adapter_id, None)

    def _view(self, adapter_id: str) -> AdapterView:
        head, position = self._heads[adapter_id]
        numbered = self._revisions.get(adapter_id, {})
        return AdapterView(head, position, tuple(numbered[number] for number in sorted(numbered)))
