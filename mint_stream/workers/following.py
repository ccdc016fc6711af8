"""What a serving worker does ahead of its requests as the catalog changes: it fetches, keeps and pins what they are about to name."""

from collections.abc import Callable, Collection

from mint_stream.catalog import Catalog, Change
from mint_stream.catalog.aliases import PREVIOUS, PRODUCTION
from mint_stream.errors import Reject
from mint_stream.messages.adapters import Revision
from mint_stream.workers.leasing import Leasing, Previous


def previous_in(catalog: Catalog) -> Previous:
    """Looks it up in the catalog."""
    return lambda adapter_id: _pointed_at(catalog, adapter_id, PREVIOUS)


def production_in(catalog: Catalog, adapter_id: str) -> Revision | None:
    """What the adapter's bare name means; None when it is not known or not to be served."""
    return _pointed_at(catalog, adapter_id, PRODUCTION)


def _pointed_at(catalog: Catalog, adapter_id: str, alias: str) -> Revision | None:
    try:
        return catalog.resolve(f"{adapter_id}@{alias}")
    except Reject:
        return None


def revision_to_come(catalog: Catalog, change: Change) -> Revision | None:
    """The revision that requests are about to name because of this change: one announced, or made a canary."""
    if change.kind == "announced":
        return change.revision
    if change.kind == "canary-set" and change.number is not None:
        return catalog.revision(change.adapter_id, change.number)
    return None


def follow(catalog: Catalog, leasing: Leasing, pinned: Collection[str] = ()) -> Callable[[], None]:
    """Load new revisions and canaries of adapters in use, keep what production was, and hold what pinned ones are. The result ends that."""
    previous = previous_in(catalog)

    def changed(change: Change) -> None:
        if change.alias == PREVIOUS or change.kind == "deleted":
            leasing.keep(change.adapter_id, previous(change.adapter_id))
        if change.adapter_id in pinned and (change.alias == PRODUCTION or change.kind == "deleted"):
            leasing.pin(change.adapter_id, production_in(catalog, change.adapter_id))
        coming = revision_to_come(catalog, change)
        if coming is not None:
            leasing.coming(coming)

    for adapter_id in sorted(pinned):
        leasing.pin(adapter_id, production_in(catalog, adapter_id))
    return catalog.subscribe(changed)
