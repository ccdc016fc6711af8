"""A store that is far away: what reading costs where the network is slow, on a machine that has none to wait for."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mint_stream.messages.adapters import Manifest
from mint_stream.store.objects import ObjectEntry, Objects
from mint_stream.store.store import Store


class DelayedObjects:
    """Another backend whose every read takes `latency_s` longer."""

    def __init__(self, objects: Objects, latency_s: float) -> None:
        self._objects = objects
        self._latency_s = latency_s

    def create(self, path: str, content: bytes) -> bool:
        return self._objects.create(path, content)

    def read(self, path: str, limit: int | None = None) -> bytes:
        time.sleep(self._latency_s)
        return self._objects.read(path, limit)

    def entries(self, prefix: str) -> list[ObjectEntry]:
        return self._objects.entries(prefix)

    def delete(self, path: str) -> None:
        self._objects.delete(path)


class DelayedStore(Store):
    """A Store whose every read of an object takes `latency_s` longer. Counts the reads of each revision in `reads`, by uri."""

    def __init__(self, uri: str, latency_s: float, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(uri, options)
        self._objects = DelayedObjects(self._objects, latency_s)
        self.reads: Counter[str] = Counter()

    def read_revision(self, revision: str | Manifest) -> dict[str, bytes]:
        """As `Store.read_revision`; what fails counts, too."""
        self.reads[revision if isinstance(revision, str) else revision.uri] += 1
        return super().read_revision(revision)
