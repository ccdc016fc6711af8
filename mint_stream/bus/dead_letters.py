"""Where records go that can never be worked on: the original bytes, key and headers, and why."""

from typing import Protocol

from mint_stream.bus.events import Headers
from mint_stream.bus.producer import Outgoing, Producer, RecordPosition
from mint_stream.errors import MintError

_MESSAGE_BYTES = 1024
_LIMIT_BYTES = 64 * 1024 * 1024


class Original(Protocol):
    """A record as it was read."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def timestamp_ms(self) -> int: ...


class DeadLetters:
    """Writes to `<topic>-dlq` and waits for the acknowledgement."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.written = 0

    async def put(self, original: Original, error: MintError) -> RecordPosition:
        """Append the record with `mint_error_*` and `mint_origin_*` headers after its own. Raises BusUnavailable."""
        position = await self._producer.publish_raw(dead_letter(original, error))
        self.written += 1
        return position


def dead_letter(original: Original, error: MintError) -> Outgoing:
    """The record as it goes to `<topic>-dlq`: its own bytes and headers, then `mint_error_*` and `mint_origin_*`."""
    return Outgoing(
        topic=f"{original.topic}-dlq",
        key=original.key,
        value=original.value,
        headers=original.headers + _reason(original, error),
        limit_bytes=_LIMIT_BYTES,
    )


def _reason(original: Original, error: MintError) -> Headers:
    origin = {name: str(getattr(original, name)).encode() for name in ("topic", "partition", "offset", "timestamp_ms")}
    why = (("mint_error_code", error.code.encode()), ("mint_error_message", str(error).encode()[:_MESSAGE_BYTES]))
    return why + tuple((f"mint_origin_{name}", value) for name, value in origin.items())
