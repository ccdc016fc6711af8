"""A directory as an object store."""

import contextlib
import os
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mint_stream.errors import StoreUnsuitable
from mint_stream.store.objects import ObjectEntry, unavailable

TEMPORARY = ".new-"


class FileObjects:
    """A directory. A new object is written aside, synced, and then linked: readers see all of it or nothing."""

    def __init__(self, root: Path, sync: bool = True) -> None:
        """Without `sync` a power cut may lose what was written: for stores that can be made again."""
        self._root = root
        self._sync = sync

    def create(self, path: str, content: bytes) -> bool:
        target = self._root / path
        with unavailable(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
            try:
                _write(aside, content, self._sync)
                os.link(aside, target)
                if self._sync:
                    _sync_directory(target.parent)
            except FileExistsError:
                return False
            finally:
                aside.unlink(missing_ok=True)
        return True

    def read(self, path: str, limit: int | None = None) -> bytes:
        with unavailable(path), (self._root / path).open("rb") as file:
            return file.read(limit)

    def entries(self, prefix: str) -> list[ObjectEntry]:
        found: list[ObjectEntry] = []
        with unavailable(prefix):
            for file in sorted((self._root / prefix).rglob("*")):
                with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                    if file.is_file() and not file.name.startswith(TEMPORARY):
                        found.append(ObjectEntry(file.relative_to(self._root).as_posix(), file.stat().st_mtime))
        return found

    def delete(self, path: str) -> None:
        with unavailable(path):
            (self._root / path).unlink(missing_ok=True)


def file_path(uri: str) -> Path:
    """The path that a file:// uri names."""
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise StoreUnsuitable(f"{uri} names another machine: write file:///absolute/path")
    return Path(unquote(parts.path))


def _write(path: Path, content: bytes, durably: bool) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        if durably:
            os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
