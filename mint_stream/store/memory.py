"""fsspec's in-process store."""

import threading
from typing import ClassVar

from fsspec.implementations.memory import MemoryFileSystem

from mint_stream.errors import StoreUnavailable
from mint_stream.store.objects import ObjectEntry


class MemoryObjects:
    """fsspec's in-process store, shared by everything in this process that names the same root."""

    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, root: str) -> None:
        self._fs = MemoryFileSystem()
        self._root = "/" + root.strip("/")

    def create(self, path: str, content: bytes) -> bool:
        with self._lock:
            if self._full(path) in self._fs.store:
                return False
            self._fs.pipe_file(self._full(path), content)
            return True

    def read(self, path: str, limit: int | None = None) -> bytes:
        with self._lock:
            if self._full(path) not in self._fs.store:
                raise StoreUnavailable(f"the store holds no object {path}")
            return bytes(self._fs.store[self._full(path)].getvalue()[:limit])

    def entries(self, prefix: str) -> list[ObjectEntry]:
        below = self._full(prefix).rstrip("/") + "/"
        with self._lock:
            found = [(name, file.modified) for name, file in self._fs.store.items() if name.startswith(below)]
        start = len(self._root.rstrip("/")) + 1
        return sorted((ObjectEntry(name[start:], modified.timestamp()) for name, modified in found), key=lambda entry: entry.path)

    def delete(self, path: str) -> None:
        with self._lock:
            self._fs.store.pop(self._full(path), None)

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"
