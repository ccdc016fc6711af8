"""The headers of every record we write: CloudEvents attributes in binary mode, and a W3C trace context."""

import re
import secrets
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime

from mint_stream.messages.record import Record

Headers = tuple[tuple[str, bytes | None], ...]
"""Kafka record headers in their order; names may repeat and values may be null."""

_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


def header(headers: Iterable[tuple[str, bytes | None]], name: str) -> bytes | None:
    """The last value under `name`, as Kafka's own clients read it, or None."""
    found = None
    for key, value in headers:
        if key == name:
            found = value
    return found


def event_type(record: Record) -> str:
    """The `ce_type` of a record: `mint.<its class>`."""
    return f"mint.{type(record).__name__}"


def event_headers(source: str, kind: str, extra: Iterable[tuple[str, bytes | None]] = ()) -> Headers:
    """`ce_*` and `traceparent`, then `extra`. A `traceparent` in `extra` is continued by a child span."""
    kept = tuple(extra)
    attributes = {
        "ce_id": str(uuid.uuid4()),
        "ce_source": source,
        "ce_type": kind,
        "ce_specversion": "1.0",
        "ce_time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "traceparent": child_traceparent(header(kept, "traceparent")),
    }
    written = tuple((name, value.encode()) for name, value in attributes.items())
    return written + tuple(pair for pair in kept if pair[0] not in attributes)


def child_traceparent(parent: bytes | None) -> str:
    """A new span of the parent's trace, or of a new trace when the parent is absent or malformed."""
    match = _TRACEPARENT.fullmatch(parent or b"")
    trace, flags = (match[1].decode(), match[2].decode()) if match else (secrets.token_hex(16), "01")
    return f"00-{trace}-{secrets.token_hex(8)}-{flags}"
