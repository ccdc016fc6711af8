"""Removing uploads that nobody announced."""

from collections import defaultdict
from collections.abc import Collection

from mint_stream.store.objects import ObjectEntry
from mint_stream.store.store import ADAPTERS, MANIFEST_FILE, Store


def sweep(store: Store, referenced: Collection[str], older_than_s: float, now_s: float) -> list[str]:
    """Delete every upload whose uri is not in `referenced` and whose newest object is older than `older_than_s`; gives their uris.

    Law: choose `older_than_s` at least twice the age at which the registrar refuses an announce, and nothing selectable is ever lost.
    The manifest goes first, so that what is left of an interrupted sweep is never whole.
    """
    uploads: defaultdict[str, list[ObjectEntry]] = defaultdict(list)
    for entry in store.entries(ADAPTERS):
        uploads[f"{store.uri}/{entry.path.rpartition('/')[0]}"].append(entry)
    stale = [uri for uri, entries in uploads.items() if uri not in referenced and _newest(entries) < now_s - older_than_s]
    for uri in stale:
        for entry in sorted(uploads[uri], key=lambda one: not one.path.endswith(f"/{MANIFEST_FILE}")):
            store.delete_object(entry.path)
    return sorted(stale)


def _newest(entries: list[ObjectEntry]) -> float:
    return max(entry.modified_s for entry in entries)
