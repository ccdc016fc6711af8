"""A worker's own directory: the first free one, kept by a lock, so that a restarted worker finds its name and its state again."""

import fcntl
import os
import socket
from itertools import count
from pathlib import Path
from typing import Self

from mint_stream.bus.seat import Seat


class Workplace:
    """Directory `<home>/<role>/<n>` held by this process; another process of the role gets the next n."""

    def __init__(self, home: Path, role: str, worker_id: str | None = None) -> None:
        self.path, self._lock = _first_free(home / role)
        self.worker_id = worker_id or f"{role}-{socket.gethostname()}-{self.path.name}"

    def seat(self) -> Seat:
        """This worker's place in its group, remembered here beside what it has on disk."""
        return Seat(self.worker_id, self.path / "partitions.json")

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first_free(root: Path) -> tuple[Path, int]:
    for number in count():
        path = root / str(number)
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return path, descriptor
    raise AssertionError("count() does not end")
