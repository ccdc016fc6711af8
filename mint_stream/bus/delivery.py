"""One record handed to a worker, and how the worker gives it back."""

from collections.abc import Callable
from typing import Any

from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.events import Headers, header
from mint_stream.errors import MintError


class Delivery:
    """A record to work on. Its offset stays open until `close` or `dead_letter`, in whatever order deliveries end."""

    __slots__ = (
        "_close",
        "_dead_letters",
        "_stale",
        "attempt",
        "headers",
        "key",
        "offset",
        "partition",
        "size_bytes",
        "timestamp_ms",
        "topic",
        "value",
    )

    def __init__(
        self, record: Any, attempt: int, stale: Callable[[], bool], close: Callable[["Delivery"], None], dead: DeadLetters
    ) -> None:
        self.topic: str = record.topic
        self.partition: int = record.partition
        self.offset: int = record.offset
        self.key: bytes | None = record.key
        self.value: bytes | None = record.value
        self.headers: Headers = tuple(record.headers)
        self.timestamp_ms: int = record.timestamp
        self.attempt = attempt
        """How often the partition changed hands so far: a later delivery of the same record has a higher one."""
        self.size_bytes = record_bytes(record)
        self._stale = stale
        self._close = close
        self._dead_letters = dead

    @property
    def stale(self) -> bool:
        """The partition was lost since: publish nothing for this record; another worker has it."""
        return self._stale()

    def header(self, name: str) -> bytes | None:
        """The last header value under `name`, or None."""
        return header(self.headers, name)

    async def close(self) -> None:
        """The record's effects are durable: its offset may be committed. Repeated or stale calls change nothing."""
        self._close(self)

    async def dead_letter(self, error: MintError) -> None:
        """Write the original bytes to the dead letter topic, wait for the acknowledgement, then close. Nothing when stale."""
        if not self.stale:
            await self._dead_letters.put(self, error)
            self._close(self)

    def __repr__(self) -> str:
        return f"Delivery({self.topic}[{self.partition}]@{self.offset} attempt {self.attempt})"


def record_bytes(record: Any) -> int:
    """What a fetched record takes of the intake's bound in bytes."""
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers
