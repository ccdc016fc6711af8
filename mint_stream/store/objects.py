"""What a storage backend must do: create an object atomically or not at all. Generic fsspec only looks first and then writes."""

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from mint_stream.errors import StoreUnavailable, StoreUnsuitable


@dataclass(frozen=True)
class ObjectEntry:
    """An object in a listing: its path below the root, and when it was written (seconds since 1970)."""

    path: str
    modified_s: float


class Objects(Protocol):
    """Bytes by path below one root. Paths are checked by the caller. Methods raise StoreUnavailable and may be called from any thread."""

    def create(self, path: str, content: bytes) -> bool:
        """Write the whole object unless one is there; of any number of racing writers exactly one is told True."""

    def read(self, path: str, limit: int | None = None) -> bytes:
        """The object's bytes, at most the first `limit`. Raises StoreUnavailable when there is none."""

    def entries(self, prefix: str) -> list[ObjectEntry]:
        """All objects below the folder `prefix`, sorted by path; none is an empty list."""

    def delete(self, path: str) -> None:
        """Remove the object if it is there."""


def check_exclusive(objects: Objects) -> None:
    """Try whether the backend really refuses a second create. Raises StoreUnsuitable."""
    path = f".probe/{uuid.uuid4().hex}"
    try:
        if not objects.create(path, b"first") or objects.create(path, b"second"):
            raise StoreUnsuitable(
                "the store's server ignores conditional writes (If-None-Match), so two writers could both win: use another"
            )
    finally:
        objects.delete(path)


@contextlib.contextmanager
def unavailable(path: str, *causes: type[Exception]) -> Iterator[None]:
    """Turn OSErrors and `causes` into StoreUnavailable that names the object."""
    failures: tuple[type[Exception], ...] = (OSError, *causes)
    try:
        yield
    except FileNotFoundError as error:
        raise StoreUnavailable(f"the store holds no object {path}") from error
    except failures as error:
        raise StoreUnavailable(f"the store could not be used for {path}: {error}") from error
